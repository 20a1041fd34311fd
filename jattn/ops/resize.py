"""Learned positions of one grid, for another."""

import chex
import jax

from jattn.ops.softmax import accumulation_dtype


def resize_positions(table: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """A table of learned positions for a grid of another size, by antialiased cubic interpolation.

  Along each axis in turn, ``out_i = sum_j w_ij table_j / sum_j w_ij`` with ``w_ij = k((j - c_i) /
  s)``, where ``c_i = (i + 1/2) old / new - 1/2`` is the centre of the new position i, ``s = max(1,
  old / new)`` widens the kernel where the grid shrinks, and k is Keys' cubic with ``a = -1/2``
  (Keys 1981). This is PyTorch's ``bicubic`` with ``antialias=True``, with which timm resizes the
  positions of vision transformers. At its own size the table is returned as it is.

  Args:
    table: [H, W, C].
    grid: the new H and W.

  Returns:
    [H', W', C] in the type of ``table``; computed in float32 (in float64 for a float64 table).

  Raises:
    AssertionError: the table has another rank.

  >>> import jax.numpy as jnp
  >>> table = jnp.array([[[0.0], [1.0]]])
  >>> resize_positions(table, (1, 3)).shape, float(resize_positions(table, (1, 1))[0, 0, 0])
  ((1, 3, 1), 0.5)
  """
  chex.assert_rank(table, 3)
  if table.shape[:2] == tuple(grid):
    return table
  wide = table.astype(accumulation_dtype(table))
  resized = jax.image.resize(wide, (*grid, table.shape[-1]), 'cubic', antialias=True)
  return resized.astype(table.dtype)
