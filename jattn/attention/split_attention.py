"""Split attention: a convolution whose output comes in splits that compete, channel by channel."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import batch_norm, conv
from jattn.layouts import Conv, Layouts, Norm
from jattn.ops import Init, accumulation_dtype, gate, masked_softmax, reshape, round_channels
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class SplitAttention(nn.Module):
  """``y = sum_r a_r * u_r`` with ``u = relu(BN(conv3x3(x)))`` in R = radix splits ``u_r`` [C'].

  ``z = (1/N) sum_i sum_r u_ri`` and ``a = softmax_r(W2 relu(BN(W1 z + b1)) + b2)``, one weight for
  each split and channel. The channels fall into ``cardinality`` groups that never meet: ``W1`` and
  ``W2`` are grouped by it, the convolution by ``cardinality * radix``. With one split there is
  nothing to compete with, and ``a = sigmoid(...)``: squeeze-and-excitation of the convolution.
  Zhang et al. 2020 (ResNeSt), arXiv 2004.08955.

  Channel ``r * C' + c`` of the convolution is channel c of split r, so with one group split r sees
  the r-th share of the input's channels and no other. ``W2`` gives, group by group, first the
  channels of split 0, then those of split 1.

  Map: ``weights``, kind ``branch``, [B, R, C'] where R > 1; kind ``gate``, [B, 1, 1, C'], where
  R = 1. They weigh the splits ``u_r``, not the input.

  Attributes:
    radix: R, number of splits.
    cardinality: number of groups.
    features: C', width of the output; None is C.
    kernel_size: side of the convolution, in positions; odd.
    strides: of the convolution, in positions.
    reduction: C * R over the hidden width, which is at least 32.
    variant: 'paper' or 'timm', whose hidden width is rounded to a multiple of 8.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  radix: int = 2
  cardinality: int = 1
  features: int | None = None
  kernel_size: int = 3
  strides: int = 1
  reduction: float = 4
  variant: Literal['paper', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'conv': Conv('conv'),
    'conv_norm': Norm('bn0'),
    'reduce': Conv('fc1'),
    'reduce_norm': Norm('bn1'),
    'expand': Conv('fc2'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H', W', C'] and the map ``weights``.

    Raises:
      ValueError: the groups do not divide a width, ``kernel_size`` is even, or ``variant`` is
        neither of the two.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    channels = x.shape[-1]
    features = channels if self.features is None else self.features
    hidden = channels * self.radix / self.reduction
    hidden = (
      max(32, int(hidden)) if self.variant == 'paper' else round_channels(hidden, 8, minimum=32)
    )
    self._check(channels, features, hidden)
    layer = {'initialization': self.initialization, 'dtype': self.dtype}

    u = conv(
      self.radix * features,
      (self.kernel_size, self.kernel_size),
      inputs=channels,
      strides=self.strides,
      groups=self.cardinality * self.radix,
      use_bias=False,
      name='conv',
      **layer,
    )(x)
    u = nn.relu(batch_norm(train=train, name='conv_norm', dtype=self.dtype)(u))
    splits = reshape(u, *u.shape[:3], self.radix, features)

    dtype = accumulation_dtype(u)
    z = jnp.sum(jnp.mean(splits, axis=(1, 2), dtype=dtype), axis=1).astype(u.dtype)[:, None, None]
    layer['groups'] = self.cardinality
    z = conv(hidden, (1, 1), inputs=features, name='reduce', **layer)(z)
    z = nn.relu(batch_norm(train=train, name='reduce_norm', dtype=self.dtype)(z))
    logits = conv(self.radix * features, (1, 1), inputs=hidden, name='expand', **layer)(z)

    grid = u.shape[1:3]
    if self.radix == 1:
      weights = nn.sigmoid(logits.astype(dtype))
      return Attended(gate(u, weights), {'weights': AttentionMap(weights, 'gate', grid)})
    logits = reshape(logits, x.shape[0], self.cardinality, self.radix, -1).swapaxes(1, 2)
    weights = reshape(masked_softmax(logits, axis=1), x.shape[0], self.radix, features)
    out = jnp.sum(splits * weights[:, None, None], axis=3).astype(u.dtype)
    return Attended(out, {'weights': AttentionMap(weights, 'branch', grid)})

  def _check(self, channels: int, features: int, hidden: int) -> None:
    if self.variant not in ('paper', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'timm'")
    if self.kernel_size % 2 == 0:
      raise ValueError(f'{self.kernel_size=} must be odd')
    if channels % (self.cardinality * self.radix):
      raise ValueError(f'{self.cardinality=} times {self.radix=} must divide C={channels}')
    for name, width in (('features', features), ('the hidden width', hidden)):
      if width % self.cardinality:
        raise ValueError(f'{self.cardinality=} must divide {name}={width}')
