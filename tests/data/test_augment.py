import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.data import augment

B, H, W, C, L = 6, 7, 9, 3, 4

ALL = {
  'flip': augment.flip,
  'pad_and_crop': functools.partial(augment.pad_and_crop, padding=2),
  'random_erasing': functools.partial(augment.random_erasing, probability=0.7),
  # The weights of other alphas are checked apart: they take seconds to compile.
  'mixup': functools.partial(augment.mixup, alpha=1.0),
  'cutmix': augment.cutmix,
}
ALL['compose'] = augment.compose(ALL['flip'], ALL['mixup'])
COMPILED = {name: jax.jit(function) for name, function in ALL.items()}


@pytest.fixture
def images(rng):
  return jnp.asarray(rng.normal(size=(B, H, W, C)), jnp.float32)


@pytest.fixture
def labels():
  return jax.nn.one_hot(jnp.arange(B) % L, L)


def drawn(function, *args, **settings):
  """What a function draws with one key, compiled."""
  return np.asarray(jax.jit(functools.partial(function, *args, **settings))(key=jax.random.key(0)))


@pytest.mark.parametrize('name', ALL)
def test_pure_by_key_and_equal_under_jit_and_vmap(name, images, labels):
  function, compiled = ALL[name], COMPILED[name]
  key = jax.random.key(3)
  one = compiled(key, images, labels)
  keys = jnp.stack([jax.random.key(4), key])
  stacked = [jnp.stack([value, value]) for value in (images, labels)]
  mapped = jax.jit(jax.vmap(function))(keys, *stacked)
  for a, b in zip(one, mapped, strict=True):
    np.testing.assert_allclose(a, b[1], rtol=1e-6, atol=1e-6)
  for a, b in zip(one, compiled(key, images, labels), strict=True):
    np.testing.assert_array_equal(a, b)
  differ = [compiled(jax.random.key(seed), images, labels)[0] for seed in range(4)]
  assert any(not np.array_equal(differ[0], other) for other in differ[1:])


@pytest.mark.parametrize('name', ALL)
def test_shapes_dtypes_and_label_mass(name, images, labels):
  for dtype in (jnp.float32, jnp.bfloat16):
    found, soft = jax.eval_shape(ALL[name], jax.random.key(0), images.astype(dtype), labels)
    assert (found.shape, found.dtype) == (images.shape, dtype)
    assert (soft.shape, soft.dtype) == (labels.shape, jnp.float32)
  for seed in range(5):
    _, soft = COMPILED[name](jax.random.key(seed), images, labels)
    np.testing.assert_allclose(np.asarray(soft).sum(axis=1), 1, rtol=1e-6)
    assert (np.asarray(soft) >= 0).all()


@pytest.mark.parametrize('name', ['flip', 'pad_and_crop', 'random_erasing'])
def test_labels_are_left_alone(name, images, labels):
  np.testing.assert_array_equal(COMPILED[name](jax.random.key(0), images, labels)[1], labels)


def test_compose_gives_each_its_own_key(images, labels):
  def shift(key, images, labels):
    return images + jax.random.uniform(key), labels

  found, _ = augment.compose(shift, shift)(jax.random.key(0), jnp.zeros((B, H, W, C)), labels)
  first, second = (jax.random.uniform(jax.random.fold_in(jax.random.key(0), i)) for i in (0, 1))
  assert first != second
  np.testing.assert_allclose(found, jnp.full_like(found, first + second), rtol=1e-6)
  assert augment.compose()(jax.random.key(0), images, labels)[0] is images


def test_flip_against_numpy(images, labels):
  flipped = np.array([True, False, True, True, False, False])
  found = np.asarray(augment._flip(images, jnp.asarray(flipped)))
  for i in range(B):
    expected = np.fliplr(images[i]) if flipped[i] else images[i]
    np.testing.assert_array_equal(found[i], expected)


def test_half_of_the_images_are_flipped():
  ramp = jnp.tile(jnp.array([0.0, 1.0])[None, None, :, None], (4000, 1, 1, 1))
  found, _ = jax.jit(augment.flip)(jax.random.key(0), ramp, jnp.ones((4000, 1)))
  assert 0.47 < found[:, 0, 0, 0].mean() < 0.53


def test_crop_against_numpy(images):
  padding = 3
  offsets = np.array([[0, 0], [6, 6], [3, 3], [0, 6], [5, 1], [2, 4]])
  found = np.asarray(augment._crop(images, jnp.asarray(offsets), padding=padding))
  for i, (top, left) in enumerate(offsets):
    sides = ((padding, padding), (padding, padding), (0, 0))
    padded = np.pad(np.asarray(images[i]), sides, mode='reflect')
    np.testing.assert_array_equal(found[i], padded[top : top + H, left : left + W])


def test_crop_offsets_are_uniform():
  middle = np.zeros((5000, H, W, 1), np.float32)
  middle[:, 3, 4] = 1
  crop = jax.jit(functools.partial(augment.pad_and_crop, padding=2))
  shifted, _ = crop(jax.random.key(0), middle, jnp.ones((5000, 1)))
  # The marked pixel lands on each of the 5 x 5 places equally often.
  counts = np.asarray(shifted).sum(axis=(0, 3))[1:6, 2:7]
  assert counts.sum() == 5000
  assert np.abs(counts / 5000 - 1 / 25).max() < 0.012


def test_erasing_against_numpy(images):
  boxes = np.array(
    [[0, 0, 2, 3], [5, 7, 7, 9], [0, 0, 0, 0], [0, 0, 7, 9], [2, 3, 3, 4], [1, 1, 6, 2]]
  )
  found = np.asarray(augment._fill(images, jnp.asarray(boxes), fill=0.5))
  for i, (top, left, bottom, right) in enumerate(boxes):
    expected = np.array(images[i])
    expected[top:bottom, left:right] = 0.5
    np.testing.assert_array_equal(found[i], expected)


def test_erased_boxes_keep_to_their_settings():
  area, aspect = (0.1, 0.3), (0.5, 2.0)
  boxes = drawn(
    augment._draw_boxes, shape=(3000, 40, 50), probability=0.6, area=area, aspect=aspect
  )
  top, left, bottom, right = boxes.T
  h, w = bottom - top, right - left
  some = h > 0
  assert 0.57 < some.mean() < 0.63
  assert (boxes >= 0).all()
  assert (bottom <= 40).all()
  assert (right <= 50).all()
  part = (h * w)[some] / 2000
  assert area[0] * 0.9 < part.min() < 0.12
  assert 0.28 < part.max() < area[1] * 1.1
  assert abs(part.mean() - 0.2) < 0.01
  logs = np.log(h[some] / w[some])
  assert np.abs(logs).max() < np.log(2) * 1.15
  assert abs(logs.mean()) < 0.02, 'tall and wide are equally likely'
  # Anywhere inside: the centre of the free room is the mean of the places.
  assert abs(((top / np.maximum(40 - h, 1))[some]).mean() - 0.5) < 0.03
  assert top[some].min() == 0
  assert bottom[some].max() == 40
  assert right[some].max() == 50


def test_erasing_leaves_the_image_when_nothing_fits(images, labels):
  # All of the area with a ratio of 1 fits no image of 7 x 9: 8 rows.
  found, _ = augment.random_erasing(
    jax.random.key(0), images, labels, probability=1.0, area=(1.0, 1.0), aspect=(1.0, 1.0)
  )
  np.testing.assert_array_equal(found, images)
  never, _ = augment.random_erasing(jax.random.key(0), images, labels, probability=0.0)
  np.testing.assert_array_equal(never, images)


def test_mixup_against_numpy(images, labels):
  lam = np.array([0.0, 1.0, 0.25, 0.5, 0.9, 0.1], np.float32)
  found, soft = augment._mix(images, labels, jnp.asarray(lam))
  for i in range(B):
    j = B - 1 - i
    expected = lam[i] * np.asarray(images[i]) + (1 - lam[i]) * np.asarray(images[j])
    np.testing.assert_allclose(found[i], expected, rtol=1e-6, atol=1e-6)
    expected = lam[i] * np.asarray(labels[i]) + (1 - lam[i]) * np.asarray(labels[j])
    np.testing.assert_allclose(soft[i], expected, rtol=1e-6)


@pytest.mark.parametrize('alpha', [0.2, 1.0])
def test_mixing_weights_are_beta(alpha):
  lam = drawn(augment._draw_lam, batch=6000, alpha=alpha)
  assert abs(lam.mean() - 0.5) < 0.02
  assert abs(lam.var() - 1 / (4 * (2 * alpha + 1))) < 0.01


def test_cutmix_against_numpy(images, labels):
  boxes = np.array(
    [[0, 0, 0, 0], [0, 0, H, W], [2, 3, 5, 6], [6, 0, 7, 9], [0, 8, 7, 9], [1, 1, 2, 2]]
  )
  found, soft = augment._paste(images, labels, jnp.asarray(boxes))
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
  for seed in range(20):
    found, soft = COMPILED['cutmix'](jax.random.key(seed), images, labels)
    np.testing.assert_allclose(np.mean(found, axis=(1, 2, 3)), soft[:, 0], atol=1e-6)


def test_cutmix_patches_against_numpy(rng):
  lam, centres = rng.uniform(size=50).astype(np.float32), rng.uniform(size=(2, 50))
  found = augment._patches(jnp.asarray(lam), jnp.asarray(centres, jnp.float32), (50, H, W))
  for i in range(50):
    rows, columns = int(H * np.sqrt(1 - lam[i])), int(W * np.sqrt(1 - lam[i]))
    top, left = int(H * centres[0, i]) - rows // 2, int(W * centres[1, i]) - columns // 2
    expected = [max(top, 0), max(left, 0), min(top + rows, H), min(left + columns, W)]
    np.testing.assert_array_equal(found[i], expected)


def test_cutmix_patches_have_the_drawn_area_before_clipping():
  boxes = drawn(augment._draw_patches, shape=(20_000, 100, 100), alpha=1.0)
  top, left, bottom, right = boxes.T
  assert (boxes >= 0).all()
  assert (boxes <= 100).all()
  whole = (top > 0) & (left > 0) & (bottom < 100) & (right < 100)
  np.testing.assert_array_equal((bottom - top)[whole], (right - left)[whole])
  # Not clipped means small: side s stays inside with chance (1 - s)^2, and s^2 is uniform, so the
  # mean side is  int s (1-s)^2 2s ds / int (1-s)^2 2s ds = (1/15) / (1/6) = 0.4.
  assert abs((bottom - top)[whole].mean() / 100 - 0.4) < 0.02


@pytest.mark.parametrize(
  ('function', 'settings'),
  [
    (augment.pad_and_crop, {'padding': H}),
    (augment.pad_and_crop, {'padding': -1}),
    (augment.random_erasing, {'probability': 1.5}),
    (augment.random_erasing, {'area': (0.5, 0.1)}),
    (augment.random_erasing, {'aspect': (0.0, 1.0)}),
    (augment.mixup, {'alpha': 0.0}),
    (augment.cutmix, {'alpha': -1.0}),
  ],
)
def test_wrong_settings(function, settings, images, labels):
  with pytest.raises(ValueError, match=next(iter(settings))):
    function(jax.random.key(0), images, labels, **settings)


def test_integer_images_and_labels_are_refused(images, labels):
  with pytest.raises(AssertionError):
    augment.mixup(jax.random.key(0), images.astype(jnp.uint8), labels)
  with pytest.raises(AssertionError):
    augment.mixup(jax.random.key(0), images, labels.argmax(axis=1))
