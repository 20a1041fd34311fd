"""What every augmentation promises, and how several become one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jattn.data import augment
from tests.data.augment.conftest import B, C, H, W

ALL = {
  'flip': augment.flip,
  'pad_and_crop': functools.partial(augment.pad_and_crop, padding=2),
  'random_resized_crop': functools.partial(augment.random_resized_crop, size=5),
  'random_erasing': functools.partial(augment.random_erasing, probability=0.7),
  # The weights of other alphas are checked apart: they take seconds to compile.
  'mixup': functools.partial(augment.mixup, alpha=1.0),
  'cutmix': augment.cutmix,
  'mixup_or_cutmix': functools.partial(augment.mixup_or_cutmix, mixup=1.0, cutmix=1.0),
  'rand_augment': augment.rand_augment,
  'auto_augment': augment.auto_augment,
}
ALL['compose'] = augment.compose(ALL['flip'], ALL['mixup'])
COMPILED = {name: jax.jit(function) for name, function in ALL.items()}
# Compiled once more under vmap, which takes seconds for these two.
MAPPED = [name for name in ALL if name not in ('auto_augment', 'rand_augment')]
KEEPS_LABELS = [name for name in ALL if 'mix' not in name and name != 'compose']


@pytest.mark.parametrize('name', ALL)
def test_pure_by_key(name, images, labels):
  compiled, key = COMPILED[name], jax.random.key(3)
  one = compiled(key, images, labels)
  for a, b in zip(one, compiled(key, images, labels), strict=True):
    np.testing.assert_array_equal(a, b)
  differ = [compiled(jax.random.key(seed), images, labels)[0] for seed in range(4)]
  assert any(not np.array_equal(differ[0], other) for other in differ[1:])


@pytest.mark.parametrize('name', MAPPED)
def test_equal_under_vmap(name, images, labels):
  key = jax.random.key(3)
  keys = jnp.stack([jax.random.key(4), key])
  stacked = [jnp.stack([value, value]) for value in (images, labels)]
  mapped = jax.jit(jax.vmap(ALL[name]))(keys, *stacked)
  for a, b in zip(COMPILED[name](key, images, labels), mapped, strict=True):
    np.testing.assert_allclose(a, b[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('name', ['random_resized_crop', 'rand_augment'])
def test_each_device_augments_its_own_images(name, images, labels):
  """Nothing is sent from one to another; only mixing needs the partner of an image."""
  mesh = Mesh(jax.devices()[:2], ('data',))
  batch = NamedSharding(mesh, PartitionSpec('data'))

  def augmented(*args):
    return jax.lax.with_sharding_constraint(ALL[name](*args), (batch, batch))

  placed = jax.device_put((images, labels), batch)
  text = jax.jit(augmented).lower(jax.random.key(0), *placed).compile().as_text()
  assert 'num_partitions=2' in text
  for sent in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
    assert sent not in text


@pytest.mark.parametrize('name', ALL)
def test_shapes_dtypes_and_label_mass(name, images, labels):
  size = (5, 5) if name == 'random_resized_crop' else (H, W)
  for dtype in (jnp.float32, jnp.bfloat16):
    found, soft = jax.eval_shape(ALL[name], jax.random.key(0), images.astype(dtype), labels)
    assert (found.shape, found.dtype) == ((B, *size, C), dtype)
    assert (soft.shape, soft.dtype) == (labels.shape, jnp.float32)
  for seed in range(5):
    found, soft = COMPILED[name](jax.random.key(seed), images, labels)
    assert 0 <= found.min() <= found.max() <= 1
    np.testing.assert_allclose(np.asarray(soft).sum(axis=1), 1, rtol=1e-6)
    assert (np.asarray(soft) >= 0).all()


@pytest.mark.parametrize('name', KEEPS_LABELS)
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


def test_a_function_of_images_draws_nothing(images, labels):
  found, kept = augment.of_images(lambda x: 2 * x)(None, images, labels)
  np.testing.assert_array_equal(found, 2 * images)
  assert kept is labels


@pytest.mark.parametrize('name', [n for n in ALL if n != 'compose'])
def test_integer_images_and_labels_are_refused(name, images, labels):
  with pytest.raises(AssertionError):
    ALL[name](jax.random.key(0), images.astype(jnp.uint8), labels)
  with pytest.raises(AssertionError):
    ALL[name](jax.random.key(0), images, labels.argmax(axis=1))


@pytest.mark.parametrize(
  ('function', 'settings'),
  [
    (augment.pad_and_crop, {'padding': H}),
    (augment.pad_and_crop, {'padding': -1}),
    (augment.pad_and_crop, {'border': 'mirror'}),
    (augment.random_resized_crop, {'size': 0}),
    (augment.random_resized_crop, {'area': (0.5, 0.1), 'size': 4}),
    (augment.random_resized_crop, {'resample': 'nearest', 'size': 4}),
    (augment.random_erasing, {'probability': 1.5}),
    (augment.random_erasing, {'area': (0.5, 0.1)}),
    (augment.random_erasing, {'aspect': (0.0, 1.0)}),
    (augment.mixup, {'alpha': 0.0}),
    (augment.cutmix, {'alpha': -1.0}),
    (augment.mixup_or_cutmix, {'mixup': 0.0}),
    (augment.mixup_or_cutmix, {'cutmix': -1.0}),
    (augment.mixup_or_cutmix, {'probability': 1.5}),
    (augment.mixup_or_cutmix, {'switch': -0.5}),
    (augment.rand_augment, {'layers': 0}),
    (augment.rand_augment, {'magnitude': 11}),
    (augment.rand_augment, {'std': -1.0}),
    (augment.rand_augment, {'variant': 'inc1'}),
    (augment.auto_augment, {'policy': 'imagenet'}),
  ],
)
def test_wrong_settings(function, settings, images, labels):
  with pytest.raises(ValueError, match=next(iter(settings))):
    function(jax.random.key(0), images, labels, **settings)
