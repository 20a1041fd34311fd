"""A random rectangle of an image taken away."""

import jax
import jax.numpy as jnp

from jattn.data.augment import boxes
from jattn.data.augment.composition import check


def random_erasing(
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  *,
  probability: float = 0.25,
  area: tuple[float, float] = (0.02, 1 / 3),
  aspect: tuple[float, float] = (0.3, 10 / 3),
  fill: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Fills a random rectangle of some of the images (Zhong et al. 2017, arXiv 1708.04896).

  The rectangle is drawn as `boxes.sizes` says and lies anywhere inside the image; if none of ten
  fits the image stays as it is. The paper draws the ratio uniformly, which favours tall rectangles,
  and fills with random values.

  Args:
    key: random key.
    images: [B, H, W, C] float.
    labels: [B, L] float, returned as they are.
    probability: in [0, 1], of an image having a rectangle.
    area: the least and greatest part of the image, in (0, 1].
    aspect: the least and greatest ratio of height to width, above 0.
    fill: the value, in the units of the images.

  Raises:
    ValueError: a setting out of range.
  """
  check(images, labels)
  if not 0 <= probability <= 1:
    raise ValueError(f'{probability=} must be in [0, 1]')
  boxes.check_ranges(area, aspect)
  drawn = draw_boxes(key, images.shape[:3], probability=probability, area=area, aspect=aspect)
  return erase(images, drawn, fill=fill), labels


def erase(images: jax.Array, drawn: jax.Array, *, fill: float) -> jax.Array:
  """Images with `fill` inside their boxes [B, 4]."""
  within = boxes.inside(drawn, images.shape[1:3])[..., None]
  return jnp.where(within, jnp.asarray(fill, images.dtype), images)


def draw_boxes(
  key: jax.Array,
  shape: tuple[int, int, int],
  *,
  probability: float,
  area: tuple[float, float],
  aspect: tuple[float, float],
) -> jax.Array:
  """Boxes [B, 4]: top, left, bottom, right (the last two not inside); empty where none."""
  batch, height, width = shape
  # One call for all the numbers: every call to jax.random adds a second to compiling on a CPU.
  drawn = jax.random.uniform(key, (batch, 2 * boxes.ATTEMPTS + 3))
  h, w, found = boxes.sizes(drawn[:, 3:], (height, width), area=area, aspect=aspect)
  found &= drawn[:, 0] < probability
  h, w = jnp.where(found, h, 0), jnp.where(found, w, 0)
  top = boxes.whole(drawn[:, 1], height - h + 1)
  left = boxes.whole(drawn[:, 2], width - w + 1)
  return jnp.stack([top, left, top + h, left + w], axis=1)
