"""Lambda layer: the context becomes a small linear map, which every query is multiplied with."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import batch_norm, conv, dense
from jattn.layouts import Conv, Conv1x1, Layouts, Norm
from jattn.ops import Init, accumulation_dtype, masked_softmax, reshape
from jattn.settings import check_counts
from jattn.types import Attended


class LambdaLayer(nn.Module):
  """``y_n = (l + p_n)^T q_n`` for each of M heads of queries, with ``l``, ``p_n`` of [D, C / M].

  ``l = sum_i softmax_i(k_i) v_i^T`` holds the content of the whole grid, each of the D key channels
  being a softmax over positions, and ``p_n = sum_i e_{i-n} v_i^T`` the relative positions: ``e`` is
  a learned kernel of r x r vectors, applied to every channel of ``v`` alike, zero beyond the grid.
  There is one head of keys and values, and a batch norm on queries and on values. Bello 2021
  (LambdaNetworks), arXiv 2102.08602, with intra-depth one. ``timm`` adds a bias of D numbers to the
  kernel's output.

  No map: a query's weight on a position, ``q_n . (softmax_i(k_i) + e_{i-n})``, has either sign and
  no fixed sum, and never exists as a number, which is the point of the layer.

  Attributes:
    num_heads: M, heads of queries; divides C.
    head_features: D, channels of one query and of the keys.
    kernel_size: r, side of the kernel, in positions; odd. The paper's networks have 23, timm's 9.
    variant: 'paper' or 'timm', whether the kernel has a bias.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  num_heads: int = 4
  head_features: int = 16
  kernel_size: int = 23
  variant: Literal['paper', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'query_key_value': Conv1x1('qkv'),
    'query_norm': Norm('norm_q'),
    'value_norm': Norm('norm_v'),
    'position': Conv('conv_lambda'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C], no map.

    Raises:
      ValueError: M does not divide C, ``kernel_size`` is even, or ``variant`` is neither.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    batch, height, width, channels = x.shape
    self._check(channels)
    wide, head = self.num_heads * self.head_features, self.head_features
    layer = {'initialization': self.initialization, 'dtype': self.dtype}
    packed = dense(
      wide + head + channels // self.num_heads,
      inputs=channels,
      name='query_key_value',
      use_bias=False,
      **layer,
    )(x)
    q, k, v = jnp.split(packed, [wide, wide + head], axis=-1)
    q = batch_norm(train=train, name='query_norm', dtype=self.dtype)(q)
    v = batch_norm(train=train, name='value_norm', dtype=self.dtype)(v)

    exact = {'preferred_element_type': accumulation_dtype(v)}
    context = masked_softmax(k, axis=(1, 2)).astype(v.dtype)
    content = jnp.einsum('bhwd,bhwv->bdv', context, v, **exact).astype(v.dtype)
    position = conv(
      head,
      (self.kernel_size, self.kernel_size, 1),
      inputs=1,
      name='position',
      use_bias=self.variant == 'timm',
      **layer,
    )(v[..., None])
    q = reshape(q, batch, height, width, self.num_heads, head)
    out = jnp.einsum('bhwmd,bdv->bhwmv', q, content, **exact)
    out = out + jnp.einsum('bhwmd,bhwvd->bhwmv', q, position, **exact)
    return Attended(reshape(out, *x.shape).astype(v.dtype))

  def _check(self, channels: int) -> None:
    if self.variant not in ('paper', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'timm'")
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    if self.kernel_size % 2 == 0:
      raise ValueError(f'{self.kernel_size=} must be odd')
