"""Attention of a block of positions to the block and a halo around it."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.layouts import Array, Conv1x1, Layouts
from jattn.ops import (
  Init,
  attention_weights,
  halo_blocks,
  join_blocks,
  relative_index_1d,
  relative_logits,
  reshape,
  split_blocks,
  weigh,
)
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class HaloAttention(nn.Module):
  """``softmax(s q k^T + t q (r_row + r_column)^T) v``, ``s = 1 / sqrt(D)``, by blocks.

  The b x b queries of a block see the (b + 2 halo)^2 keys of the block and what surrounds it.
  ``r_row`` is a learned vector for the difference of two rows, ``r_column`` for that of two
  columns, the same for all heads and blocks; they start at normal ``1 / sqrt(D)``. Vaswani et al.
  2021 (HaloNet), arXiv 2103.12731. No bias, no output projection.

  With ``strides`` S every S-th row and column of a block asks, b / S queries on a side, and all of
  the block and its halo answer: the paper's attention downsampling.

  =======  =====  ====================  ==================  ====================================
  variant  ``t``  outside the grid      rows of a table     which row
  =======  =====  ====================  ==================  ====================================
  paper    ``s``  takes no part         2 (b + halo) - S    key - query, in positions
  timm     1      keys and values zero  2 (b + 2 halo) - 1  key - query, the query's place counted
                                                            in strides: b + 2 halo - b / S unused
  =======  =====  ====================  ==================  ====================================

  In ``timm`` positions at the border give weight to what is outside, which adds nothing, and the
  gradient of the unused rows (the first) is exactly zero. Where the block does not divide the grid,
  what lies beyond is outside.

  Map: ``weights``, kind ``position``, [B, M, Q, (b + 2 halo)^2] with ``keys``; Q is N, or with
  strides ceil(H / S) ceil(W / S), row-major.

  Attributes:
    num_heads: M, number of maps; divides C.
    block_size: b, side of a block, in positions.
    halo: how far a block sees around itself, in positions.
    strides: S, of the queries in positions; divides the block.
    variant: 'paper' or 'timm'.
    initialization: how the projections start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  num_heads: int = 4
  block_size: int = 8
  halo: int = 3
  strides: int = 1
  variant: Literal['paper', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'query': Conv1x1('q'),
    'key_value': Conv1x1('kv'),
    'rows': Array('pos_embed.height_rel'),
    'columns': Array('pos_embed.width_rel'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, ceil(H / S), ceil(W / S), C] and the map ``weights``.

    Raises:
      ValueError: M does not divide C, S does not divide b, or ``variant`` is neither of the two.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    *_, height, width, channels = x.shape
    self._check(channels)
    head, side, asking = channels // self.num_heads, self.block_size, self._queries

    def pad(a: jax.Array, side: int) -> jax.Array:
      rest = [(0, 0)] * (a.ndim - 3)
      return jnp.pad(a, [(0, 0), (0, -a.shape[1] % side), (0, -a.shape[2] % side), *rest])

    q = self._project(x[:, :: self.strides, :: self.strides], 'query', head)
    grid = q.shape[1:3]
    q = pad(q, asking)
    padded = q.shape[1:3]

    def out_of_blocks(a: jax.Array) -> jax.Array:
      return join_blocks(a, padded)[:, : grid[0], : grid[1]]

    q = split_blocks(q, asking)
    # Keys and values lie side by side for each head.
    key_value = pad(self._project(x, 'key_value', 2 * head), side)
    k, v = jnp.split(halo_blocks(key_value, side, self.halo), 2, axis=-1)
    # Numbered from one, so that zero is outside.
    number = 1 + jnp.arange(height * width, dtype=jnp.int32).reshape(1, height, width)
    number = halo_blocks(pad(number, side), side, self.halo)

    rows, columns = self._table('rows', head), self._table('columns', head)
    bias = relative_logits(reshape(q, *q.shape[:2], asking, asking, *q.shape[3:]), rows, columns)
    if self.variant == 'paper':
      bias = bias * head**-0.5
    mask = (number > 0)[:, :, None, None] if self.variant == 'paper' else None
    weights = attention_weights(q, k, bias=bias, mask=mask)
    out = reshape(out_of_blocks(weigh(weights, v)), x.shape[0], *grid, channels)
    shown = out_of_blocks(jnp.moveaxis(weights, 2, 3))
    shown = jnp.moveaxis(reshape(shown, x.shape[0], grid[0] * grid[1], self.num_heads, -1), 1, 2)
    keys = jnp.broadcast_to(number[:, :, None] - 1, (1, *q.shape[1:3], number.shape[-1]))
    keys = out_of_blocks(keys).reshape(grid[0] * grid[1], -1)
    return Attended(out, {'weights': AttentionMap(shown, 'position', (height, width), keys)})

  @property
  def _queries(self) -> int:
    """How many queries a block has on a side."""
    return self.block_size // self.strides

  def _check(self, channels: int) -> None:
    if self.variant not in ('paper', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'timm'")
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    if self.block_size % self.strides:
      raise ValueError(f'{self.strides=} must divide {self.block_size=}')

  def _project(self, x: jax.Array, name: str, head: int) -> jax.Array:
    layer = dense(
      self.num_heads * head,
      inputs=x.shape[-1],
      name=name,
      use_bias=False,
      initialization=self.initialization,
      dtype=self.dtype,
    )
    return reshape(layer(x), *x.shape[:3], self.num_heads, head)

  def _table(self, name: str, head: int) -> jax.Array:
    """[b / S, b + 2 halo, D]: the vector of each query and key on one axis."""
    span = self.block_size + 2 * self.halo
    if self.variant == 'timm':
      unused, index = 0, relative_index_1d(self._queries, span)
    else:
      unused = 2 * self.halo + self.strides - 1
      index = relative_index_1d(self.block_size, span)[:: self.strides]
    start = nn.initializers.normal(head**-0.5)
    table = self.param(name, start, (2 * span - 1 - unused, head), jnp.float32)
    return table[index - unused]
