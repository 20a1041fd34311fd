"""Rotary positions: a position turns pairs of channels by angles of its own."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jattn.ops.reshape import reshape
from jattn.ops.softmax import accumulation_dtype


def rotary_angles(
  grid: tuple[int, int],
  width: int,
  *,
  reference: tuple[int, int] | None = None,
  base: float = 10000.0,
) -> jax.Array:
  """The angles of axial rotary positions, in radians.

  Su et al. 2021, arXiv 2104.09864, on two axes: pair j of the first half of the pairs turns by
  ``row * base^(-4j / width)``, and of the second half by the column likewise.

  Args:
    grid: (H, W).
    width: channels of a head, a multiple of four.
    reference: the grid whose rows and columns are counted: row r of H counts as
      ``r * reference[0] / H``. None is ``grid``.
    base: how fast the frequencies fall.

  Returns:
    [H*W, width // 2] float32 (float64 under ``jax_enable_x64``), positions row by row.

  Raises:
    ValueError: four does not divide ``width``.

  >>> rotary_angles((2, 2), 4).tolist()
  [[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
  """
  if width % 4:
    raise ValueError(f'{width=} must be a multiple of 4 for rotary positions')
  height, columns = grid
  rows_counted, columns_counted = grid if reference is None else reference
  # In NumPy: the angles are constants, and float64 where the session is.
  frequencies = base ** (-np.arange(width // 4) / (width // 4))
  down = np.arange(height) * (rows_counted / height)
  across = np.arange(columns) * (columns_counted / columns)
  shape = (height, columns, width // 4)
  halves = (
    np.broadcast_to((down[:, None] * frequencies)[:, None], shape),
    np.broadcast_to((across[:, None] * frequencies)[None], shape),
  )
  return jnp.asarray(np.concatenate(halves, axis=-1).reshape(height * columns, width // 2))


def rotate(x: jax.Array, angles: jax.Array) -> jax.Array:
  """Turns channels (2j, 2j + 1) of position n by ``angles[n, j]``, anticlockwise.

  Args:
    x: [..., N, M, D], queries or keys.
    angles: [N, D // 2] in radians.

  Returns:
    [..., N, M, D] in the type of ``x``, computed in float32.

  >>> rotate(jnp.array([[[1.0, 0.0]]]), jnp.array([[jnp.pi / 2]])).round(3).tolist()
  [[[-0.0, 1.0]]]
  """
  chex.assert_shape(angles, (x.shape[-3], x.shape[-1] // 2))
  pairs = reshape(x.astype(accumulation_dtype(x)), *x.shape[:-1], -1, 2)
  angles = angles.astype(pairs.dtype)
  leading = (1,) * (x.ndim - 3)
  sine, cosine = (
    f(angles).reshape(*leading, angles.shape[0], 1, angles.shape[1]) for f in (jnp.sin, jnp.cos)
  )
  first, second = pairs[..., 0], pairs[..., 1]
  turned = (first * cosine - second * sine, first * sine + second * cosine)
  return reshape(jnp.stack(turned, axis=-1), *x.shape).astype(x.dtype)
