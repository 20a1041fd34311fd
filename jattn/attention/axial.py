"""Attention along the columns of the grid, then along its rows."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jattn.layers import dense
from jattn.ops import Init, attention_weights, reshape, weigh
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class AxialAttention(nn.Module):
  """Two layers of ``softmax(q k^T / sqrt(D)) v W``: among a column, then among a row of the result.

  After both every position has seen every other, at the cost of N (H + W) products instead of N^2.
  Ho et al. 2019, arXiv 1912.12180: multi-head attention on one axis at a time, without positional
  terms (theirs are added to the input). No norm and no residual around either layer, no mask and no
  bias.

  Maps, both kind ``position`` with ``keys``: ``column`` [B, M, N, H], what the first layer sees of
  the input, and ``row`` [B, M, N, W], what the second sees of the first's result.

  Attributes:
    num_heads: M, number of maps; divides C.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  num_heads: int = 4
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the maps ``column`` and ``row``.

    Raises:
      ValueError: M does not divide C.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    *_, height, width, channels = x.shape
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    row, column = (axis.ravel() for axis in np.indices((height, width)))
    seen = {
      'column': np.arange(height) * width + column[:, None],
      'row': np.arange(width) + width * row[:, None],
    }
    out, maps = x, {}
    for name, keys in seen.items():
      out, weights = self._layer(name, out)
      keys = jnp.asarray(keys, jnp.int32)
      maps[name] = AttentionMap(weights, 'position', (height, width), keys)
    return Attended(out, maps)

  def _layer(self, name: str, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, H, W, C] and the weights [B, M, N, K] of one axis."""
    batch, height, width, channels = x.shape

    def project(part: str, x: jax.Array) -> jax.Array:
      layer = dense(
        channels,
        inputs=channels,
        name=f'{name}_{part}',
        use_bias=False,
        initialization=self.initialization,
        dtype=self.dtype,
      )
      return layer(x)

    def turn(a: jax.Array) -> jax.Array:
      return a.swapaxes(1, 2) if name == 'column' else a

    def lines(part: str) -> jax.Array:
      return turn(reshape(project(part, x), batch, height, width, self.num_heads, -1))

    weights = attention_weights(lines('query'), lines('key'))
    out = reshape(turn(weigh(weights, lines('value'))), *x.shape)
    shown = turn(jnp.moveaxis(weights, 2, 3))
    shown = reshape(shown, batch, height * width, self.num_heads, -1)
    return project('out', out), jnp.moveaxis(shown, 1, 2)
