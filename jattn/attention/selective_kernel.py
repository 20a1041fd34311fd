"""Selective kernels: convolutions of several reaches, and a choice among them for each channel."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import batch_norm, conv, dense
from jattn.layouts import Conv, Conv1x1, Layouts, Norm
from jattn.ops import Init, accumulation_dtype, masked_softmax, reshape, round_channels
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class SelectiveKernel(nn.Module):
  """``y = sum_p a_p * u_p`` with ``u_p = relu(BN(conv_p(x)))``, one path for each kernel.

  ``z = relu(BN(W1 s))`` of ``s = (1/N) sum_i sum_p u_pi``, and ``a = softmax_p(A_p z)``: one weight
  for each path and channel. No layer has a bias. Li et al. 2019, arXiv 1903.06586, where 5x5 is a
  3x3 kernel of dilation 2, as here.

  ``paper``: every path sees all channels, and z has C' / reduction numbers, at least 32. ``timm``:
  path p sees the p-th share of the channels, and z has C' / reduction numbers rounded to a multiple
  of ``divisor``, one multiple more where that loses over a tenth.

  Map: ``weights``, kind ``branch``, [B, P, C'] over the P paths, in the order of ``paths``. They
  weigh the ``u_p``, not the input.

  Attributes:
    paths: (side of the kernel, its dilation) of each path, both in positions; sides are odd.
    features: C', width of the output; None is C.
    strides: of the convolutions, in positions.
    groups: of the convolutions.
    reduction: C' over the hidden width.
    divisor: what the hidden width of ``timm`` is a multiple of, and its least value.
    variant: 'paper' or 'timm'.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  paths: tuple[tuple[int, int], ...] = ((3, 1), (3, 2))
  features: int | None = None
  strides: int = 1
  groups: int = 1
  reduction: int = 16
  divisor: int = 8
  variant: Literal['paper', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    **{f'path_{p}': Conv(f'paths.{p}.conv') for p in range(8)},
    **{f'path_norm_{p}': Norm(f'paths.{p}.bn') for p in range(8)},
    'reduce': Conv1x1('attn.fc_reduce'),
    'reduce_norm': Norm('attn.bn'),
    'select': Conv1x1('attn.fc_select'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H', W', C'] and the map ``weights``.

    Raises:
      ValueError: a side is even, a width does not divide, or ``variant`` is neither of the two.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    features = x.shape[-1] if self.features is None else self.features
    self._check(x.shape[-1], features)
    outputs = self._convolve(x, features, train=train)
    dtype = accumulation_dtype(x)
    s = jnp.mean(sum(u.astype(dtype) for u in outputs), axis=(1, 2)).astype(x.dtype)

    hidden = features / self.reduction
    if self.variant == 'paper':
      hidden = max(32, int(hidden))
    else:
      hidden = round_channels(hidden, self.divisor)
    layer = {'initialization': self.initialization, 'dtype': self.dtype, 'use_bias': False}
    z = dense(hidden, inputs=features, name='reduce', **layer)(s)
    z = nn.relu(batch_norm(train=train, name='reduce_norm', dtype=self.dtype)(z))
    logits = dense(len(outputs) * features, inputs=hidden, name='select', **layer)(z)
    weights = masked_softmax(reshape(logits, -1, len(outputs), features), axis=1)

    out = sum(u * weights[:, p, None, None] for p, u in enumerate(outputs)).astype(x.dtype)
    return Attended(out, {'weights': AttentionMap(weights, 'branch', out.shape[1:3])})

  def _convolve(self, x: jax.Array, features: int, *, train: bool) -> list[jax.Array]:
    split = self.variant == 'timm'
    shares = jnp.split(x, len(self.paths), axis=-1) if split else [x] * len(self.paths)
    outputs = []
    for p, (share, (side, dilation)) in enumerate(zip(shares, self.paths, strict=True)):
      u = conv(
        features,
        (side, side),
        inputs=share.shape[-1],
        strides=self.strides,
        dilation=dilation,
        groups=self.groups,
        use_bias=False,
        initialization=self.initialization,
        dtype=self.dtype,
        name=f'path_{p}',
      )(share)
      norm = batch_norm(train=train, name=f'path_norm_{p}', dtype=self.dtype)
      outputs.append(nn.relu(norm(u)))
    return outputs

  def _check(self, channels: int, features: int) -> None:
    if self.variant not in ('paper', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'timm'")
    if not self.paths or any(side % 2 == 0 for side, _ in self.paths):
      raise ValueError(f'{self.paths=} must be (odd side, dilation) of at least one path')
    parts = len(self.paths) if self.variant == 'timm' else 1
    if channels % parts:
      raise ValueError(f'{len(self.paths)} paths of {self.paths=} must divide C={channels}')
    if channels // parts % self.groups or features % self.groups:
      raise ValueError(
        f'{self.groups=} must divide {channels // parts} channels of a path and {features=}'
      )
