"""Every operation against Pillow's own, which is what the papers and timm call."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jattn.data.augment import OPERATIONS, operate

SIZE = (19, 25)
GREY = (128, 128, 128)
FACTORS = (0.1, 0.55, 1.0, 1.3, 1.9)
ARGUMENTS = {
  'rotate': (23.0, -17.0, 0.0),
  'shear_x': (0.3, -0.17),
  'shear_y': (0.3, -0.11),
  'translate_x': (0.45, -0.2),
  'translate_y': (0.45, -0.13),
  'posterize': (1.0, 3.0, 4.0, 8.0),
  'solarize': (0.0, 77.0, 256.0),
  'solarize_add': (33.0, 110.0),
  'color': FACTORS,
  'contrast': FACTORS,
  'brightness': FACTORS,
  'sharpness': FACTORS,
}
CASES = [(name, value) for name in OPERATIONS for value in ARGUMENTS.get(name, (0.0,))]


def by_pillow(image: Image.Image, name: str, value: float) -> Image.Image:
  width, height = image.size
  move = {
    'shear_x': (1, value, 0, 0, 1, 0),
    'shear_y': (1, 0, 0, value, 1, 0),
    'translate_x': (1, 0, value * width, 0, 1, 0),
    'translate_y': (1, 0, 0, 0, 1, value * height),
  }
  enhance = {
    'color': ImageEnhance.Color,
    'contrast': ImageEnhance.Contrast,
    'brightness': ImageEnhance.Brightness,
    'sharpness': ImageEnhance.Sharpness,
  }
  bilinear = Image.Resampling.BILINEAR
  if name in move:
    affine = Image.Transform.AFFINE
    return image.transform(image.size, affine, move[name], resample=bilinear, fillcolor=GREY)
  if name in enhance:
    return enhance[name](image).enhance(value)
  return {
    'identity': lambda: image,
    'auto_contrast': lambda: ImageOps.autocontrast(image),
    'equalize': lambda: ImageOps.equalize(image),
    'invert': lambda: ImageOps.invert(image),
    'rotate': lambda: image.rotate(value, resample=bilinear, fillcolor=GREY),
    'posterize': lambda: ImageOps.posterize(image, int(value)),
    'solarize': lambda: ImageOps.solarize(image, value),
    'solarize_add': lambda: image.point(
      [min(255, level + int(value)) if level < 128 else level for level in range(256)] * 3
    ),
  }[name]()


def scene(seed: int) -> np.ndarray:
  """A smooth picture with noise, of some of the levels only, [H, W, 3] uint8."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[: SIZE[0], : SIZE[1]]
  waves = np.stack([np.sin(x / 5 + c) * np.cos(y / 7 - c) for c in range(3)], axis=-1)
  return np.clip(128 + 80 * waves + rng.normal(0, 8, (*SIZE, 3)), 20, 230).astype(np.uint8)


PICTURES = np.stack([scene(i) for i in range(len(CASES))])
COMPILED = jax.jit(operate)  # once, for a batch of this size and any fill


def levels(pictures, names, values, fill=128 / 255):
  """Levels 0..255, as floats: nothing may lie between two."""
  numbers = jnp.array([OPERATIONS.index(name) for name in names])
  values = jnp.array(values, jnp.float32)
  images = jnp.asarray(pictures, jnp.float32) / 255
  return np.asarray(COMPILED(images, numbers, values, fill=jnp.float32(fill))) * 255


def levels_of_all(pictures, name, value, **settings):
  return levels(pictures, [name] * len(CASES), [value] * len(CASES), **settings)


@pytest.fixture(scope='module')
def all_at_once():
  """One batch in which every image wants another operation."""
  found = levels(PICTURES, *zip(*CASES, strict=True))
  return dict(zip(CASES, zip(PICTURES, found, strict=True), strict=True))


@pytest.mark.parametrize(('name', 'value'), CASES)
def test_equal_to_pillow_in_a_mixed_batch(all_at_once, name, value):
  picture, found = all_at_once[name, value]
  wanted = np.asarray(by_pillow(Image.fromarray(picture), name, value)).astype(float)
  off = np.abs(found - wanted)
  # Pillow has doubles where float32 may fall on the other side of a whole number.
  places = name.startswith(('shear', 'translate')) or name in ('rotate', 'auto_contrast')
  assert off.max() < (1.01 if places else 0.01)
  assert (off > 0.01).mean() < 0.08
  np.testing.assert_allclose(found, np.round(found), atol=1e-3)


@pytest.mark.parametrize('name', ['auto_contrast', 'equalize', 'contrast'])
def test_an_even_image_stays(name):
  pictures = np.stack([np.full((*SIZE, 3), 5 * i, np.uint8) for i in range(len(CASES))])
  np.testing.assert_allclose(levels_of_all(pictures, name, 1.5), pictures, atol=1e-3)


def test_no_bit_kept_is_black():
  assert (levels_of_all(PICTURES, 'posterize', 0.0) == 0).all()


def test_what_comes_in_from_outside_is_the_fill():
  found = levels_of_all(PICTURES, 'translate_x', 0.2, fill=0.2)
  np.testing.assert_allclose(found[:, :, :20], PICTURES[:, :, 5:], atol=1e-3)
  np.testing.assert_allclose(found[:, :, 20:], 51, atol=1e-3)


def test_values_between_two_levels_are_rounded():
  pictures = np.full(PICTURES.shape, 100.49)
  pictures[:, 0, 0] = 100.6
  found = levels_of_all(pictures, 'identity', 0.0)
  np.testing.assert_allclose(found[:, 0, 0], 101, atol=1e-3)
  np.testing.assert_allclose(found[:, 1:], 100, atol=1e-3)
