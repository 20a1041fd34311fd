import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jattn.data import augment
from jattn.data.augment import crop
from tests.data.augment.conftest import B, H, W

RESIZE = jax.jit(crop.crop_and_resize, static_argnames=('size', 'resample'))
DRAW = jax.jit(crop.draw_crops, static_argnames=('shape', 'area', 'aspect'))


def test_flip_against_numpy(images):
  flipped = np.array([True, False, True, True, False, False])
  found = np.asarray(crop.mirror(images, jnp.asarray(flipped)))
  for i in range(B):
    expected = np.fliplr(images[i]) if flipped[i] else images[i]
    np.testing.assert_array_equal(found[i], expected)


def test_half_of_the_images_are_flipped():
  ramp = jnp.tile(jnp.array([0.0, 1.0])[None, None, :, None], (4000, 1, 1, 1))
  found, _ = jax.jit(augment.flip)(jax.random.key(0), ramp, jnp.ones((4000, 1)))
  assert 0.47 < found[:, 0, 0, 0].mean() < 0.53


@pytest.mark.parametrize(('border', 'mode'), [('reflect', 'reflect'), ('black', 'constant')])
def test_shift_against_numpy(images, border, mode):
  padding = 3
  offsets = np.array([[0, 0], [6, 6], [3, 3], [0, 6], [5, 1], [2, 4]])
  found = np.asarray(crop.shift(images, jnp.asarray(offsets), padding=padding, border=border))
  for i, (top, left) in enumerate(offsets):
    sides = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad(np.asarray(images[i]), sides, mode=mode)
    np.testing.assert_array_equal(found[i], padded[top : top + H, left : left + W])


def test_shifts_are_uniform():
  middle = np.zeros((5000, H, W, 1), np.float32)
  middle[:, 3, 4] = 1
  shifted = jax.jit(functools.partial(augment.pad_and_crop, padding=2))
  found, _ = shifted(jax.random.key(0), middle, jnp.ones((5000, 1)))
  # The marked pixel lands on each of the 5 x 5 places equally often.
  counts = np.asarray(found).sum(axis=(0, 3))[1:6, 2:7]
  assert counts.sum() == 5000
  assert np.abs(counts / 5000 - 1 / 25).max() < 0.012


@pytest.mark.parametrize('resample', ['bilinear', 'bicubic'])
def test_resizing_a_part_is_pillow_on_that_part_alone(rng, resample):
  """Larger, smaller, one way each, a single pixel and the whole; Pillow computes in float too."""
  height, width, size = 20, 26, 8
  drawn = np.array(
    [[0, 0, 20, 26], [3, 5, 8, 9], [0, 2, 20, 5], [17, 24, 20, 26], [4, 4, 5, 5], [2, 1, 10, 9]]
  )
  images = rng.uniform(size=(len(drawn), height, width, 3)).astype(np.float32)
  found = np.asarray(RESIZE(jnp.asarray(images), jnp.asarray(drawn), size=size, resample=resample))
  filters = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
  for i, (top, left, bottom, right) in enumerate(drawn):
    for channel in range(3):
      part = Image.fromarray(images[i, top:bottom, left:right, channel])
      expected = np.asarray(part.resize((size, size), filters[resample]))
      np.testing.assert_allclose(found[i, ..., channel], np.clip(expected, 0, 1), atol=2e-6)


def test_a_part_of_the_size_of_the_result_is_copied(images):
  drawn = jnp.asarray(np.tile([2, 3, 6, 7], (B, 1)))
  found = RESIZE(images, drawn, size=4)
  np.testing.assert_allclose(found, images[:, 2:6, 3:7], atol=1e-6)


def test_crops_keep_to_their_settings():
  area, aspect = (0.1, 0.6), (3 / 4, 4 / 3)
  drawn = np.asarray(DRAW(jax.random.key(0), (4000, 100, 120), area=area, aspect=aspect))
  top, left, bottom, right = drawn.T
  h, w = bottom - top, right - left
  assert (drawn >= 0).all()
  assert bottom.max() == 100
  assert right.max() == 120
  part = h * w / 12_000
  assert 0.095 < part.min() < 0.11
  assert 0.58 < part.max() < 0.61
  # Uniform in area: the mean and a quartile.
  np.testing.assert_allclose([part.mean(), np.quantile(part, 0.25)], [0.35, 0.225], atol=0.01)
  logs = np.log(h / w)
  assert np.abs(logs).max() < np.log(4 / 3) * 1.1
  np.testing.assert_allclose(logs.var(), np.log(16 / 9) ** 2 / 12, rtol=0.08)
  # Anywhere inside: the first and the last place are reached, the middle is the mean.
  room = 100 - h
  np.testing.assert_allclose((top / np.maximum(room, 1)).mean(), 0.5, atol=0.02)
  assert top.min() == 0
  assert (top == room).any()


def test_where_no_crop_fits_the_largest_centred_part_is_taken():
  # All of the area with a ratio up to 2 never fits 10 x 40 (ratio of height to width 1/4).
  drawn = DRAW(jax.random.key(0), (3, 10, 40), area=(1.0, 1.0), aspect=(0.5, 2.0))
  np.testing.assert_array_equal(drawn, [[0, 10, 10, 30]] * 3)
  drawn = DRAW(jax.random.key(0), (3, 40, 10), area=(1.0, 1.0), aspect=(0.5, 2.0))
  np.testing.assert_array_equal(drawn, [[10, 0, 30, 10]] * 3)
