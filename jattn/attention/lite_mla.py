"""Lightweight multi-scale attention: ReLU linear attention over windows of several sizes."""

from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import batch_norm, conv, dense
from jattn.layouts import Conv, Conv1x1, Layouts, Norm
from jattn.ops import Init, accumulation_dtype, linear_attend, linear_weights, reshape
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class LiteMla(nn.Module):
  """``o_i = r(q_i) (sum_j r(k_j) v_j^T) / (r(q_i) . sum_j r(k_j) + eps)`` with ``r = relu``.

  Cai et al. 2023 (EfficientViT), arXiv 2205.14756. ``[q, k, v]`` of each head are linear in x. Each
  scale adds as many heads again, whose ``[q, k, v]`` are a depthwise s x s convolution of the first
  ones, followed by a linear layer within each q, k and v of each head: what position j offers there
  is the window around it. The outputs of all heads side by side go through a linear layer and a
  batch norm. Only the last norm has a bias. Time is linear in N. The formula has no ``eps``;
  without one a query that meets no key divides zero by zero. 1e-5 is timm's; other copies have
  1e-15.

  Map: ``weights``, kind ``position``, [B, M, Q, K], K = N + 1: ``r(q_i) . r(k_j)`` over the
  denominator and, as the last key, the share ``eps / (... + eps)``, which is spent on a key of
  value zero outside the grid (``keys`` is -1). M counts the heads of all scales, the positions
  themselves first. It is computed beside the features, and under ``jit`` only if it is read.

  Attributes:
    num_heads: heads of each scale; None is C over ``head_width``, floor.
    head_width: D, of queries, keys and values.
    scales: side of each window, in positions; odd.
    out_features: width of the output; None is C.
    eps: positive; in the unit of ``q . k``.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  num_heads: int | None = None
  head_width: int = 8
  scales: tuple[int, ...] = (5,)
  out_features: int | None = None
  eps: float = 1e-5
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'qkv': Conv1x1('qkv.conv'),
    **{f'window_{index}': Conv(f'aggreg.{index}.0') for index in range(4)},
    **{f'mix_{index}': Conv(f'aggreg.{index}.1') for index in range(4)},
    'out': Conv1x1('proj.conv'),
    'norm': Norm('proj.norm'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C'] and the map ``weights``.

    Raises:
      ValueError: C gives no head, a scale is even, or ``eps`` is not positive.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    batch, height, width, channels = x.shape
    heads = channels // self.head_width if self.num_heads is None else self.num_heads
    if heads < 1:
      raise ValueError(f'{self.head_width=} must not exceed C={channels}')
    if not all(scale % 2 for scale in self.scales):
      raise ValueError(f'{self.scales=} must be odd')
    if self.eps <= 0:
      raise ValueError(f'{self.eps=} must be positive')
    layer = {
      'initialization': self.initialization,
      'use_bias': False,
      'dtype': self.dtype,
    }
    total = 3 * heads * self.head_width
    qkv = dense(total, inputs=channels, name='qkv', **layer)(x)
    parts = [qkv]
    for index, scale in enumerate(self.scales):
      window = (scale, scale)
      out = conv(total, window, inputs=total, groups=total, name=f'window_{index}', **layer)(qkv)
      mix = conv(total, (1, 1), inputs=total, groups=3 * heads, name=f'mix_{index}', **layer)
      parts.append(mix(out))
    # Channels of a part: head, then q, k and v, then the head's width.
    tokens = jnp.concatenate(parts, axis=-1)
    tokens = reshape(tokens, batch, height * width, -1, 3, self.head_width)
    q, k, v = nn.relu(tokens[..., 0, :]), nn.relu(tokens[..., 1, :]), tokens[..., 2, :]
    out = reshape(linear_attend(q, k, v, eps=self.eps), batch, height, width, -1)
    features = channels if self.out_features is None else self.out_features
    out = dense(features, inputs=out.shape[-1], name='out', **layer)(out)
    out = batch_norm(train=train, name='norm', dtype=self.dtype)(out)
    return Attended(out, {'weights': self._map(q, k, (height, width))})

  def _map(self, q: jax.Array, k: jax.Array, grid: tuple[int, int]) -> AttentionMap:
    # One feature more, which only the key outside has: there every query's product is eps.
    dtype = accumulation_dtype(q)
    q = jnp.pad(q.astype(dtype), ((0, 0), (0, 0), (0, 0), (0, 1)), constant_values=1)
    k = jnp.pad(k.astype(dtype), ((0, 0), (0, 1), (0, 0), (0, 1))).at[:, -1, :, -1].set(self.eps)
    weights = linear_weights(q, k)
    positions = q.shape[1]
    keys = jnp.append(jnp.arange(positions, dtype=jnp.int32), -1)
    return AttentionMap(weights, 'position', grid, jnp.tile(keys, (positions, 1)))
