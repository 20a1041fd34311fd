"""The self-attention of bottleneck transformers: relative positions on the grid's two axes."""

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
  relative_index_1d,
  relative_logits,
  reshape,
  resize_relative,
  weigh,
)
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class BottleneckAttention(nn.Module):
  """``softmax(s q k^T + t q (r_row + r_column)^T) v`` over all positions, ``s = 1 / sqrt(D)``.

  ``r_row`` is a learned vector for the difference of two rows, ``r_column`` for that of two
  columns, the same for all heads; they start at normal ``1 / sqrt(D)``. Srinivas et al. 2021
  (BoTNet), arXiv 2101.11605. In ``paper`` the queries are scaled first, as the authors' code does,
  so that ``t = s``; in ``timm`` ``t = 1``. No bias, no output projection, no stride.

  The tables are as long as the grid at which the parameters were made, and interpolated linearly
  at another (``jattn.ops.resize_relative``).

  Map: ``weights``, kind ``position``, [B, M, N, N].

  Attributes:
    num_heads: M, number of maps; divides C.
    variant: 'paper' or 'timm', whether the position term is scaled.
    initialization: how the projections start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  num_heads: int = 4
  variant: Literal['paper', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'query': Conv1x1('qkv', 0, 3),
    'key': Conv1x1('qkv', 1, 3),
    'value': Conv1x1('qkv', 2, 3),
    'rows': Array('pos_embed.height_rel', resizable=(0,)),
    'columns': Array('pos_embed.width_rel', resizable=(0,)),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``weights``.

    Raises:
      ValueError: M does not divide C, or ``variant`` is neither of the two.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    batch, height, width, channels = x.shape
    if self.variant not in ('paper', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'timm'")
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    head = channels // self.num_heads

    def project(name: str) -> jax.Array:
      layer = dense(
        channels,
        inputs=channels,
        name=name,
        use_bias=False,
        initialization=self.initialization,
        dtype=self.dtype,
      )
      return reshape(layer(x), batch, height, width, self.num_heads, head)

    def tokens(a: jax.Array) -> jax.Array:
      return reshape(a, batch, height * width, self.num_heads, head)

    q = project('query')
    rows, columns = self._table('rows', height, head), self._table('columns', width, head)
    bias = relative_logits(q, rows, columns)
    if self.variant == 'paper':
      bias = bias * head**-0.5
    weights = attention_weights(tokens(q), tokens(project('key')), bias=bias)
    out = reshape(weigh(weights, tokens(project('value'))), *x.shape)
    return Attended(out, {'weights': AttentionMap(weights, 'position', (height, width))})

  def _table(self, name: str, size: int, head: int) -> jax.Array:
    """[size, size, D]: the vector of each query and key on one axis."""
    if self.has_variable('params', name):
      table = self.get_variable('params', name)  # may have been made at another size
    else:
      table = self.param(
        name, nn.initializers.normal(head**-0.5), (2 * size - 1, head), jnp.float32
      )
    return resize_relative(table, [size])[relative_index_1d(size, size)]
