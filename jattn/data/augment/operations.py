"""Sixteen operations of Pillow on a batch whose images each want another one.

Branches would all be computed for every image under `vmap`, so there are none. Each operation is
one of three things and nothing in the other two, so that one pass of each does for any mixture:

========  =====================================  ==========================================
thing     what it is for an image                operations
========  =====================================  ==========================================
a map     of the plane, sampled bilinearly       rotate, shear_x, shear_y, translate_x,
                                                 translate_y
a table   of 256 levels for each channel         auto_contrast, equalize, invert, posterize,
                                                 solarize, solarize_add, brightness, contrast
a blend   with its grey or its smoothed twin     color, sharpness
========  =====================================  ==========================================
"""

import chex
import jax
import jax.numpy as jnp

# The number of an operation in an array is its place here.
OPERATIONS = (
  'identity',
  'auto_contrast',
  'equalize',
  'invert',
  'rotate',
  'posterize',
  'solarize',
  'solarize_add',
  'color',
  'contrast',
  'brightness',
  'sharpness',
  'shear_x',
  'shear_y',
  'translate_x',
  'translate_y',
)
_NUMBER = {name: number for number, name in enumerate(OPERATIONS)}


def operate(
  images: jax.Array, operation: jax.Array, argument: jax.Array, *, fill: float = 128 / 255
) -> jax.Array:
  """Each image after its operation, rounded to bytes as Pillow rounds them.

  ============================  ================================================================
  operation                     argument
  ============================  ================================================================
  identity, auto_contrast,      none
  equalize, invert
  rotate                        degrees, anticlockwise about the centre
  shear_x, shear_y              slope: columns a row, or rows a column
  translate_x, translate_y      part of the width or the height, towards the left or the top
  posterize                     bits to keep, 0..8
  solarize                      levels 0..255 from this one on are inverted
  solarize_add                  levels that are added to those below 128
  color, contrast, brightness,  1 leaves the image; 0 is grey, the mean grey, black, smoothed
  sharpness
  ============================  ================================================================

  Args:
    images: [B, H, W, 3] float in [0, 1].
    operation: [B] whole, places in `OPERATIONS`.
    argument: [B] float.
    fill: what comes in from beyond the border, in [0, 1].

  Returns:
    [B, H, W, 3], multiples of 1/255.
  """
  chex.assert_shape(images, (None, None, None, 3))
  chex.assert_shape([operation, argument], (images.shape[0],))
  # Half up, as Pillow and torchvision round; jnp.round would go to the even level.
  levels = jnp.floor(jnp.clip(images.astype(jnp.float32), 0, 1) * 255 + 0.5)
  levels = _move(levels, operation, argument, jnp.floor(jnp.asarray(fill) * 255 + 0.5))
  levels = _look_up(levels, operation, argument)
  levels = _blend(levels, operation, argument)
  return (levels / 255).astype(images.dtype)


def _is(operation: jax.Array, *names: str) -> jax.Array:
  return jnp.any(jnp.stack([operation == _NUMBER[name] for name in names]), axis=0)


def _move(levels: jax.Array, operation: jax.Array, argument: jax.Array, fill: float) -> jax.Array:
  """Bilinear samples at (row, column) = the map of each pixel's centre; outside is `fill`."""
  _, height, width, _ = levels.shape

  def of(name: str, otherwise: float = 0.0) -> jax.Array:
    return jnp.where(_is(operation, name), argument, otherwise)[:, None, None]

  angle = jnp.deg2rad(of('rotate'))
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  y = jnp.arange(height)[None, :, None] + 0.5
  x = jnp.arange(width)[None, None, :] + 0.5
  from_y, from_x = y - height / 2, x - width / 2
  column = cos * from_x - sin * from_y + width / 2
  column += of('shear_x') * y + of('translate_x') * width
  row = sin * from_x + cos * from_y + height / 2
  row += of('shear_y') * x + of('translate_y') * height
  moves = _is(operation, 'rotate', 'shear_x', 'shear_y', 'translate_x', 'translate_y')
  moved = _sample(levels, row, column, fill)
  return jnp.where(moves[:, None, None, None], moved, levels)


def _sample(levels: jax.Array, row: jax.Array, column: jax.Array, fill: jax.Array) -> jax.Array:
  batch, height, width, channels = levels.shape
  outside = (row < 0) | (row >= height) | (column < 0) | (column >= width)
  top, left = jnp.floor(row - 0.5), jnp.floor(column - 0.5)
  down, right = (row - 0.5 - top)[..., None], (column - 0.5 - left)[..., None]
  pixels = levels.reshape(batch, height * width, channels)

  def at(y: jax.Array, x: jax.Array) -> jax.Array:
    y = jnp.clip(y, 0, height - 1).astype(jnp.int32)
    x = jnp.clip(x, 0, width - 1).astype(jnp.int32)
    place = (y * width + x).reshape(batch, -1, 1)
    return jnp.take_along_axis(pixels, place, axis=1).reshape(levels.shape)

  def between(a: jax.Array, b: jax.Array, part: jax.Array) -> jax.Array:
    return a + part * (b - a)

  upper = between(at(top, left), at(top, left + 1), right)
  lower = between(at(top + 1, left), at(top + 1, left + 1), right)
  sampled = jnp.floor(between(upper, lower, down))  # Pillow cuts what is after the point
  return jnp.where(outside[..., None], fill, sampled)


def _look_up(levels: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
  """Every level through its image's and channel's table, which costs one gather."""
  whole = levels.astype(jnp.int32)
  tables = _tables(whole, operation, argument).astype(levels.dtype)
  channel = jnp.arange(levels.shape[-1])[None, None, :]
  return jax.vmap(lambda table, image: table[image, channel])(tables, whole)


def _tables(whole: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
  """[B, 256, 3]: where each level of each channel goes, whole numbers 0..255."""
  level = jnp.arange(256)[None, :, None]
  argument = argument[:, None, None]
  number = jnp.floor(argument).astype(jnp.int32)
  contrast = _is(operation, 'contrast')[:, None, None]
  grey = jnp.where(contrast, _mean_grey(whole)[:, None, None], 0)
  kept = 8 - jnp.clip(number, 0, 8)
  choices = {
    'auto_contrast': _stretched(whole, level),
    'equalize': _equalized(whole),
    'invert': 255 - level,
    'posterize': (level >> kept) << kept,
    'solarize': jnp.where(level < argument, level, 255 - level),
    'solarize_add': jnp.where(level < 128, jnp.minimum(level + number, 255), level),
    'brightness': _toward(grey, level, argument),
    'contrast': _toward(grey, level, argument),
  }
  table = jnp.broadcast_to(level, (whole.shape[0], 256, whole.shape[-1]))
  for name, choice in choices.items():
    table = jnp.where(_is(operation, name)[:, None, None], choice, table)
  return table


def _stretched(whole: jax.Array, level: jax.Array) -> jax.Array:
  """The least level of a channel to 0, the greatest to 255; as it is where they are equal."""
  low = whole.min(axis=(1, 2))[:, None, :]
  high = whole.max(axis=(1, 2))[:, None, :]
  stretched = jnp.clip((level - low) * 255 // jnp.maximum(high - low, 1), 0, 255)
  return jnp.where(high > low, stretched, level)


def _equalized(whole: jax.Array) -> jax.Array:
  """Levels to their share of the pixels below, by Pillow's whole-number rule."""
  batch, height, width, channels = whole.shape

  def histogram(levels: jax.Array) -> jax.Array:
    return jnp.zeros(256, jnp.int32).at[levels].add(1)

  # Under vmap each device of a mesh counts its own images; one flat table would be summed over all.
  of_channel = whole.reshape(batch, height * width, channels).swapaxes(1, 2)
  counts = jax.vmap(jax.vmap(histogram))(of_channel)
  last = jnp.sum(of_channel == of_channel.max(axis=2, keepdims=True), axis=2, keepdims=True)
  step = (height * width - last) // 255
  below = jnp.cumsum(counts, axis=2) - counts
  equal = jnp.minimum((step // 2 + below) // jnp.maximum(step, 1), 255)
  table = jnp.where(step > 0, equal, jnp.arange(256)[None, None, :])
  return table.swapaxes(1, 2)


def _blend(levels: jax.Array, operation: jax.Array, argument: jax.Array) -> jax.Array:
  sharpness, color = (_is(operation, name)[:, None, None, None] for name in ('sharpness', 'color'))
  twin = jnp.where(sharpness, _smoothed(levels), _grey(levels.astype(jnp.int32))[..., None])
  blended = _toward(twin.astype(levels.dtype), levels, argument[:, None, None, None])
  return jnp.where(sharpness | color, blended, levels)


def _toward(twin: jax.Array, level: jax.Array, factor: jax.Array) -> jax.Array:
  """`twin + factor * (level - twin)` cut to bytes: at 0 the twin, at 1 the level, beyond on."""
  return jnp.floor(jnp.clip(twin + factor * (level - twin), 0, 255))


def _grey(whole: jax.Array) -> jax.Array:
  """[B, H, W]: ITU-R 601 in whole numbers, as Pillow's mode 'L'."""
  red, green, blue = whole[..., 0], whole[..., 1], whole[..., 2]
  return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _mean_grey(whole: jax.Array) -> jax.Array:
  return jnp.floor(_grey(whole).mean(axis=(1, 2), dtype=jnp.float32) + 0.5)


def _smoothed(levels: jax.Array) -> jax.Array:
  """Weights 1 around and 5 in the middle, over 13; the border stays."""
  around = sum(
    levels[:, 1 + dy : levels.shape[1] - 1 + dy, 1 + dx : levels.shape[2] - 1 + dx]
    for dy in (-1, 0, 1)
    for dx in (-1, 0, 1)
  )
  middle = levels[:, 1:-1, 1:-1]
  inner = jnp.floor((around + 4 * middle) / 13 + 0.5)
  return levels.at[:, 1:-1, 1:-1].set(inner)
