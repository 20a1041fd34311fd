"""Random boxes: how large, where, and which pixels lie inside."""

import jax
import jax.numpy as jnp

ATTEMPTS = 10


def sizes(
  uniform: jax.Array,
  shape: tuple[int, int],
  *,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The rows h [B] and columns w [B] of a box for each image, and whether one was found [B].

  h = round(sqrt(S * r)) and w = round(sqrt(S / r)), with S / (H * W) uniform in `area` and r
  log-uniform in `aspect`; of ten drawn the first with 1 <= h <= H and 1 <= w <= W is taken.

  Args:
    uniform: [B, 20] in [0, 1): ten for the areas, ten for the ratios.
    shape: (H, W).
    area: the least and greatest part of the image.
    aspect: the least and greatest ratio of height to width.
  """
  height, width = shape
  areas, ratios = uniform[:, :ATTEMPTS], uniform[:, ATTEMPTS:]
  pixels = height * width * (area[0] + (area[1] - area[0]) * areas)
  ratio = aspect[0] * (aspect[1] / aspect[0]) ** ratios
  h = jnp.round(jnp.sqrt(pixels * ratio)).astype(jnp.int32)
  w = jnp.round(jnp.sqrt(pixels / ratio)).astype(jnp.int32)
  fits = (h >= 1) & (h <= height) & (w >= 1) & (w <= width)
  first = jnp.argmax(fits, axis=1)[:, None]
  return (
    jnp.take_along_axis(h, first, 1)[:, 0],
    jnp.take_along_axis(w, first, 1)[:, 0],
    fits.any(axis=1),
  )


def whole(uniform: jax.Array, count: jax.Array | int) -> jax.Array:
  """Uniform numbers in [0, 1) to whole ones in 0..count-1, all equally likely."""
  return jnp.minimum(jnp.floor(uniform * count).astype(jnp.int32), count - 1)


def inside(boxes: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """[B, H, W] bool: True inside each image's box (top, left, bottom, right), [B, 4]."""
  height, width = shape
  row, column = jnp.arange(height)[None], jnp.arange(width)[None]
  rows = (row >= boxes[:, 0:1]) & (row < boxes[:, 2:3])
  columns = (column >= boxes[:, 1:2]) & (column < boxes[:, 3:4])
  return rows[:, :, None] & columns[:, None, :]


def check_ranges(area: tuple[float, float], aspect: tuple[float, float]) -> None:
  """Raises ValueError where a range is empty or outside what it can be."""
  if not 0 < area[0] <= area[1] <= 1 or not 0 < aspect[0] <= aspect[1]:
    raise ValueError(f'{area=} must rise in (0, 1], and {aspect=} must rise above 0')
