"""Attention inside windows of the grid, shifted or not, with a bias for each relative position."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jattn.layers import dense
from jattn.layouts import Array, Layouts, Linear
from jattn.ops import (
  Init,
  attention_weights,
  join_blocks,
  relative_index,
  reshape,
  split_blocks,
  weigh,
)
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class WindowAttention(nn.Module):
  """``softmax(q k^T / sqrt(D) + b) v`` among the positions of one window, then a projection.

  ``b`` is learned for each head and each difference of two positions. Liu et al. 2021 (Swin),
  arXiv 2103.14030. With ``shift`` s the windows' borders lie s positions further down and right,
  and the windows at the grid's border are smaller. An axis no longer than the window is not
  shifted. Where the window does not divide the grid, what lies outside takes no part.

  ``swin`` keeps the biases in a flat table [(2S-1)^2, M] of differences query - key, ``tf``
  (CoAtNet, Dai et al. 2021, arXiv 2106.04803; MaxViT, Tu et al. 2022, arXiv 2204.01697) in
  [M, 2S-1, 2S-1] of differences key - query; S is the window's side. Both start at normal 0.02.

  Swin's code adds -100 between positions that a shift has put together by wrapping around; here
  their weight is exactly zero. Its table is for windows no larger than the grid at hand, so that a
  smaller grid has a smaller table; here the table is always that of the window.

  The bias of the key projection cannot move the output: softmax ignores it.

  Map: ``weights``, kind ``position``, [B, M, N, S^2] with ``keys``, the positions of the window.

  Attributes:
    num_heads: M, number of maps.
    window_size: S, side of a window, in positions.
    shift: of the windows down and right, in positions, 0..S-1; Swin's is S // 2 in every second
      layer.
    variant: 'swin' or 'tf', how the table of biases lies.
    use_bias: whether the projections of queries, keys and values have a bias.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  num_heads: int = 4
  window_size: int = 7
  shift: int = 0
  variant: Literal['swin', 'tf'] = 'swin'
  use_bias: bool = True
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'query': Linear('qkv', 0, 3),
    'key': Linear('qkv', 1, 3),
    'value': Linear('qkv', 2, 3),
    'relative_bias': Array('relative_position_bias_table'),
    'relative_bias_tf': Array('rel_pos.relative_position_bias_table'),
    'out': Linear('proj'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``weights``.

    Raises:
      ValueError: M does not divide C, ``shift`` is outside its range, or ``variant`` is neither.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    *_, height, width, channels = x.shape
    self._check(channels)
    side = self.window_size
    padding = [(0, -height % side), (0, -width % side)]
    padded = (height + padding[0][1], width + padding[1][1])
    shift = tuple(self.shift if length > side else 0 for length in (height, width))

    def into_windows(a: jax.Array) -> jax.Array:
      a = jnp.pad(a, [(0, 0), *padding, *[(0, 0)] * (a.ndim - 3)])
      return split_blocks(jnp.roll(a, (-shift[0], -shift[1]), axis=(1, 2)), side)

    def out_of_windows(a: jax.Array) -> jax.Array:
      return jnp.roll(join_blocks(a, padded), shift, axis=(1, 2))[:, :height, :width]

    layer = {'inputs': channels, 'initialization': self.initialization, 'dtype': self.dtype}

    def project(name: str) -> jax.Array:
      heads = dense(channels, name=name, use_bias=self.use_bias, **layer)(x)
      return into_windows(reshape(heads, *x.shape[:3], self.num_heads, -1))

    # Numbered from one, so that zero is padding.
    number = into_windows(1 + jnp.arange(height * width, dtype=jnp.int32).reshape(1, height, width))
    down, right = np.indices(padded)
    wrapped = (down < shift[0]) + 2 * (right < shift[1])
    piece = split_blocks(np.roll(wrapped, (-shift[0], -shift[1]), axis=(0, 1))[None], side)
    mask = (piece[..., :, None] == piece[..., None, :]) & (number > 0)[..., None, :]

    weights = attention_weights(
      project('query'), project('key'), bias=self._bias(), mask=mask[:, :, None]
    )
    out = out_of_windows(weigh(weights, project('value')))
    out = dense(channels, name='out', **layer)(reshape(out, *x.shape))
    shown = out_of_windows(jnp.moveaxis(weights, 2, 3))
    shown = jnp.moveaxis(reshape(shown, x.shape[0], height * width, self.num_heads, -1), 1, 2)
    keys = out_of_windows(jnp.broadcast_to(number[:, :, None] - 1, mask.shape))
    keys = keys.reshape(height * width, side * side)
    return Attended(out, {'weights': AttentionMap(shown, 'position', (height, width), keys)})

  def _bias(self) -> jax.Array:
    """[M, S^2, S^2]."""
    start, span = nn.initializers.normal(0.02), 2 * self.window_size - 1
    grid = (self.window_size, self.window_size)
    if self.variant == 'swin':
      table = self.param('relative_bias', start, (span**2, self.num_heads), jnp.float32)
      return jnp.moveaxis(table[relative_index(grid, sign='query-key')], -1, 0)
    table = self.param('relative_bias_tf', start, (self.num_heads, span, span), jnp.float32)
    return table.reshape(self.num_heads, -1)[:, relative_index(grid, sign='key-query')]

  def _check(self, channels: int) -> None:
    if self.variant not in ('swin', 'tf'):
      raise ValueError(f"{self.variant=} must be 'swin' or 'tf'")
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    if not 0 <= self.shift < self.window_size:
      raise ValueError(f'{self.shift=} must be in 0..{self.window_size - 1}, {self.window_size=}')
