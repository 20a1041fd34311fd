"""A grid cut into squares, and put together again."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jattn.ops.reshape import reshape


def split_blocks(x: jax.Array, side: int) -> jax.Array:
  """Cuts a grid into squares of ``side`` x ``side``, row-major, as are the positions in each.

  Args:
    x: [B, H, W, ...], H and W multiples of ``side``.
    side: of the squares, in positions.

  Returns:
    [B, H*W / side^2, side^2, ...].

  >>> split_blocks(jnp.arange(8).reshape(1, 2, 4), 2).tolist()
  [[[0, 1, 4, 5], [2, 3, 6, 7]]]
  """
  batch, height, width, *rest = x.shape
  rows, columns = height // side, width // side
  x = reshape(x, batch, rows, side, columns, side, *rest).swapaxes(2, 3)
  return reshape(x, batch, rows * columns, side * side, *rest)


def join_blocks(blocks: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """Puts squares together again, the inverse of ``split_blocks``.

  Args:
    blocks: [B, H*W / side^2, side^2, ...].
    grid: H, W.

  Returns:
    [B, H, W, ...].

  Raises:
    AssertionError: the squares do not fill the grid.

  >>> x = jnp.arange(24).reshape(1, 4, 6)
  >>> bool((join_blocks(split_blocks(x, 2), (4, 6)) == x).all())
  True
  """
  batch, count, area, *rest = blocks.shape
  chex.assert_equal(count * area, grid[0] * grid[1])
  side = round(area**0.5)
  rows, columns = grid[0] // side, grid[1] // side
  blocks = reshape(blocks, batch, rows, columns, side, side, *rest).swapaxes(2, 3)
  return reshape(blocks, batch, *grid, *rest)


def halo_blocks(x: jax.Array, side: int, halo: int) -> jax.Array:
  """The squares of ``split_blocks`` with what lies up to ``halo`` around each; zeros outside.

  Args:
    x: [B, H, W, ...], H and W multiples of ``side``.
    side: of the squares, in positions.
    halo: in positions, on each of the four sides.

  Returns:
    [B, H*W / side^2, (side + 2 halo)^2, ...].

  >>> halo_blocks(jnp.arange(1, 5).reshape(1, 2, 2), 1, 1)[0, 0].reshape(3, 3).tolist()
  [[0, 0, 0], [0, 1, 2], [0, 3, 4]]
  """
  batch, height, width, *rest = x.shape
  span = side + 2 * halo
  rows, columns = (
    np.arange(0, length, side)[:, None] + np.arange(span)[None, :] for length in (height, width)
  )
  x = jnp.pad(x, [(0, 0), (halo, halo), (halo, halo), *[(0, 0)] * len(rest)])
  x = x[:, rows][:, :, :, columns].swapaxes(2, 3)
  return reshape(x, batch, len(rows) * len(columns), span * span, *rest)
