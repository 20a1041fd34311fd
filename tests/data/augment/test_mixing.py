import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.data import augment
from jattn.data.augment import mixing
from tests.data.augment.conftest import B, C, H, L, W


def drawn(function, *args, **settings):
  """What a function draws with one key, compiled."""
  found = jax.jit(functools.partial(function, *args, **settings))(key=jax.random.key(0))
  return jax.tree.map(np.asarray, found)


def test_mixup_against_numpy(images, labels):
  lam = np.array([0.0, 1.0, 0.25, 0.5, 0.9, 0.1], np.float32)
  found, soft = mixing.blend(images, labels, jnp.asarray(lam))
  for i in range(B):
    j = B - 1 - i
    expected = lam[i] * np.asarray(images[i]) + (1 - lam[i]) * np.asarray(images[j])
    np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-6)
    expected = lam[i] * np.asarray(labels[i]) + (1 - lam[i]) * np.asarray(labels[j])
    np.testing.assert_allclose(soft[i], expected, rtol=1e-6)


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_mixing_weights_are_beta(alpha):
  lam = drawn(mixing.draw_lam, batch=6000, alpha=alpha)
  assert abs(lam.mean() - 0.5) < 0.02
  assert abs(lam.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_cutmix_against_numpy(images, labels):
  boxes = np.array(
    [[0, 0, 0, 0], [0, 0, H, W], [2, 3, 5, 6], [6, 0, 7, 9], [0, 8, 7, 9], [1, 1, 2, 2]]
  )
  found, soft = mixing.paste(images, labels, jnp.asarray(boxes))
  for i, (top, left, bottom, right) in enumerate(boxes):
    j = B - 1 - i
    expected = np.array(images[i])
    expected[top:bottom, left:right] = images[j][top:bottom, left:right]
    np.testing.assert_array_equal(found[i], expected)
    pasted = (bottom - top) * (right - left) / (H * W)
    np.testing.assert_allclose(
      soft[i], (1 - pasted) * labels[i] + pasted * labels[j], rtol=1e-6, atol=1e-7
    )


def test_cutmix_label_weight_is_the_area_seen():
  # White images paired with black ones: the mean of the pixels is the weight of the label.
  white = np.arange(B) < B // 2
  images = jnp.asarray(np.tile(white[:, None, None, None], (1, H, W, C)), jnp.float32)
  labels = jnp.asarray(np.eye(L)[np.where(white, 0, 1)], jnp.float32)
  cutmix = jax.jit(augment.cutmix)
  for seed in range(20):
    found, soft = cutmix(jax.random.key(seed), images, labels)
    np.testing.assert_allclose(np.mean(found, axis=(1, 2, 3)), soft[:, 0], atol=1e-6)


def test_cutmix_patches_against_numpy(rng):
  lam, centres = rng.uniform(size=50).astype(np.float32), rng.uniform(size=(2, 50))
  found = mixing.patches(jnp.asarray(lam), jnp.asarray(centres, jnp.float32), (H, W))
  for i in range(50):
    rows, columns = int(H * np.sqrt(1 - lam[i])), int(W * np.sqrt(1 - lam[i]))
    top, left = int(H * centres[0, i]) - rows // 2, int(W * centres[1, i]) - columns // 2
    expected = [max(top, 0), max(left, 0), min(top + rows, H), min(left + columns, W)]
    np.testing.assert_array_equal(found[i], expected)


def test_cutmix_patches_have_the_drawn_area_before_clipping():
  boxes = drawn(mixing.draw_patches, shape=(20_000, 100, 100), alpha=1.0)
  top, left, bottom, right = boxes.T
  assert (boxes >= 0).all()
  assert (boxes <= 100).all()
  whole = (top > 0) & (left > 0) & (bottom < 100) & (right < 100)
  np.testing.assert_array_equal((bottom - top)[whole], (right - left)[whole])
  # Not clipped means small: side s stays inside with chance (1 - s)^2, and s^2 is uniform, so the
  # mean side is  int s (1-s)^2 2s ds / int (1-s)^2 2s ds = (1/15) / (1/6) = 0.4.
  assert abs((bottom - top)[whole].mean() / 100 - 0.4) < 0.02


def test_either_against_numpy(images, labels):
  """Each image by its own way; its partner's way does not matter."""
  lam = np.array([0.3, 0.3, 1.0, 1.0, 0.75, 0.75], np.float32)
  pasted = np.array([True, False, True, False, False, True])
  centres = np.array([[0.5, 0.1, 0.5, 0.5, 0.9, 0.0], [0.5, 0.9, 0.5, 0.5, 0.1, 0.99]], np.float32)
  found, soft = mixing.mix(images, labels, *map(jnp.asarray, (lam, pasted, centres)))
  boxes = mixing.patches(jnp.asarray(lam), jnp.asarray(centres), (H, W))
  blended, blended_labels = mixing.blend(images, labels, jnp.asarray(lam))
  cut, cut_labels = mixing.paste(images, labels, boxes)
  for i in range(B):
    expected = (cut, cut_labels) if pasted[i] else (blended, blended_labels)
    np.testing.assert_allclose(found[i], expected[0][i], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(soft[i], expected[1][i], rtol=1e-6, atol=1e-7)
  np.testing.assert_array_equal(found[2:4], images[2:4])  # a weight of one changes nothing


def test_probabilities_of_mixing_and_of_switching():
  lam, pasted, centres = drawn(
    mixing.draw_mixes, batch=8000, alphas=(1.0, 1.0), probability=0.8, switch=0.3
  )
  mixed = lam < 1
  assert abs(mixed.mean() - 0.8) < 0.02
  assert abs(pasted.mean() - 0.3) < 0.02
  assert abs((mixed & pasted).mean() - 0.24) < 0.02, 'the two are independent'
  np.testing.assert_allclose([lam[mixed].mean(), centres.mean()], 0.5, atol=0.02)
  assert centres.shape == (2, 8000)


def test_each_way_has_its_own_alpha():
  lam, pasted, _ = drawn(
    mixing.draw_mixes, batch=8000, alphas=(0.2, 4.0), probability=1.0, switch=0.5
  )
  for ours, alpha in ((lam[~pasted], 0.2), (lam[pasted], 4.0)):
    assert abs(ours.var() - 1 / (4 * (2 * alpha + 1))) < 0.01
