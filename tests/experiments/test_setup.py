"""From flags to parts: models, sizes, augmentation, and the weights that a run starts from."""

import dataclasses
import functools

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from experiments.augmentation import make_augmentation
from experiments.config import parse
from experiments.errors import ConfigError, InputError
from experiments.reload import Reloaded, load_data_of
from experiments.settings import AugmentConfig
from experiments.setup import DataFacts, load_data, make_model, make_setup
from experiments.start import load_start
from jattn.ops import normalize
from jattn.weights import save_weights

FACTS = DataFacts('x', 'f', 4, tuple('abcd'), 16, (0.4,) * 3, (0.2,) * 3, 1000)
PREPARE = functools.partial(normalize, mean=FACTS.mean, std=FACTS.std)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('npz') / 'd.npz'
  np.savez(
    path,
    x_train=rng.integers(0, 255, (40, 16, 16, 3)).astype(np.uint8),
    y_train=np.arange(40) % 4,
    x_test=rng.integers(0, 255, (8, 16, 16, 3)).astype(np.uint8),
    y_test=np.arange(8) % 4,
  )
  return f'npz:{path}'


@pytest.fixture(scope='module', autouse=True)
def _small():
  small = functools.partial(jattn.models.resnet_cifar, depth=8, widths=(4, 8, 8))
  patches = functools.partial(jattn.models.vit, depth=1, width=8, num_heads=2, patch_size=4)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(jattn.models.MODELS, 'resnet8', small)
    patch.setitem(jattn.models.MODELS, 'vit_1', patches)
    yield


@pytest.mark.parametrize('name', jattn.list_models())
def test_every_model_is_made_by_its_name(name):
  model = make_model(parse(['--model', name]), num_classes=7)
  assert model.head.num_classes == 7


def test_the_slots_of_a_model_follow_the_flags():
  def attention(*flags):
    return make_model(parse(['--model', 'seresnet50', *flags]), num_classes=4).backbone.attention

  assert attention('--attention', 'none') is None
  assert type(attention()()).__name__ == 'SqueezeExcite'
  assert type(attention('--attention', 'eca')()).__name__ == 'EfficientChannelAttention'
  config = parse('--model cct_2_3x2_32 --drop-path 0'.split())
  assert make_model(config, num_classes=4).backbone.drop_path == 0, 'None would be its own, 0.1'
  config = parse('--model seed_classifier --image-size 48'.split())
  assert make_model(config, num_classes=4).image_size == 48
  assert make_model(config, num_classes=4).attention[0].mimetic == 100
  for flag, value in (('0', None), ('0.7', 0.7)):
    config = parse(['--model', 'seed_classifier', '--mimetic', flag])
    assert make_model(config, num_classes=4).attention[0].mimetic == value


@pytest.mark.parametrize(
  ('flags', 'sizes'),
  [
    ('', (16, 16)),
    ('--image-size 8', (8, 8)),
    ('--image-size 8 --crop-ratio 0.7', (8, 8)),
    ('--image-size 8 --crop-ratio 0.7 --augment.crop-area 0.5', (11, 8)),
    ('--image-size 8 --store-size 13 --augment.crop-area 0.5', (13, 8)),
    ('--augment.crop-area 0.5', (16, 16)),
  ],
)
def test_sizes_of_images_follow_the_flags(data, flags, sizes):
  config = parse(['--augment.crop-padding', '0', '--data', data, *flags.split()])
  dataset = load_data(config)
  assert (dataset.size, dataset.eval_size) == sizes
  assert dataset.eval_square.crop_ratio == config.crop_ratio
  assert DataFacts.of(dataset).size == sizes[1]
  assert DataFacts.of(dataset, normalization='half').std == (0.5, 0.5, 0.5)


def test_data_that_cannot_be_read_in_this_way_is_refused():
  with pytest.raises(ConfigError, match='--data scenes:cluttered: workers=1 must be 0'):
    load_data(parse('--data scenes:cluttered --workers 1'.split()))


def test_augmentation_is_in_its_order():
  """Operations see [0, 1], what is erased is the mean, and both mixings switch."""
  key, labels = jax.random.key(0), jnp.eye(4)
  images = jax.random.uniform(key, (4, 12, 12, 3))
  plain, kept = make_augmentation(AugmentConfig(), 12, PREPARE)(key, images, labels)
  np.testing.assert_allclose(plain, PREPARE(images), rtol=1e-5)
  assert kept is labels
  settings = AugmentConfig(
    crop_area=0.5, flip=True, rand_layers=1, erasing=1.0, mixup=1.0, mix_probability=0.0
  )
  found, soft = jax.jit(make_augmentation(settings, 8, PREPARE))(key, images, labels)
  assert found.shape == (4, 8, 8, 3)
  np.testing.assert_array_equal(soft, labels)
  erased = (found == 0).all(axis=-1).any(axis=(1, 2))
  assert erased.all()
  # Whatever else happened, every value is a whole level, normalised: 0 is (0.4 * 255 = 102).
  levels = np.asarray(found) * 0.2 * 255 + 102
  np.testing.assert_allclose(levels, np.round(levels), atol=1e-2)


@pytest.mark.parametrize('way', ['mixup', 'cutmix'])
def test_one_way_of_mixing_alone_is_never_switched(way):
  images = jnp.stack([jnp.zeros((6, 6, 3)), jnp.ones((6, 6, 3))])
  settings = AugmentConfig(**{way: 1.0})
  augmentation = jax.jit(make_augmentation(settings, 6, lambda x: x))
  between = False
  for seed in range(4):
    found, soft = augmentation(jax.random.key(seed), images, jnp.eye(2))
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), soft[:, 1], atol=1e-5)
    between |= bool(((found > 0) & (found < 1)).any())
  assert between == (way == 'mixup')


def setup_of(*flags, facts=FACTS):
  return make_setup(parse(['--batch-size', '8', '--ema-decay', '0.9', *flags]), facts)


def flat(tree):
  return flax.traverse_util.flatten_dict(dict(tree), sep='/')


def saved(path, name, size, num_classes):
  model = jattn.create_model(name, num_classes=num_classes)
  variables = jax.jit(lambda key: model.init(key, jnp.ones((1, size, size, 3)), train=False))(
    jax.random.key(7)
  )
  return save_weights(path, model, variables, library='jattn'), flat(jax.device_get(variables))


@pytest.mark.parametrize('classes', [4, 6])
def test_a_run_starts_from_a_file_and_with_a_new_head_for_other_classes(tmp_path, classes):
  folder, wanted = saved(tmp_path / 'w', 'resnet8', 16, classes)
  setup = setup_of('--model', 'resnet8', '--init-from', str(folder))
  variables, told = load_start(setup)
  assert told == {'init_from': str(folder), 'new_head': classes != 4, 'shapes': {}}
  state = jax.device_get(setup.create_state(variables))
  for found in (state.variables, state.ema):
    for path, value in flat(found).items():
      if classes != 4 and path.startswith('params/head'):
        assert value.shape[-1] == 4
      else:
        np.testing.assert_array_equal(value, wanted[path], err_msg=path)
  assert state.step == 0


def test_tables_of_another_grid_stay_as_they_are_and_are_remembered(tmp_path):
  """Positions of 32 x 32 images, fine-tuned at 16 x 16: the model resizes them in use."""
  folder, wanted = saved(tmp_path / 'w', 'vit_1', 32, 4)
  setup = setup_of('--model', 'vit_1', '--init-from', str(folder))
  variables, told = load_start(setup)
  assert told['shapes'] == {'params/backbone/positions': [8, 8, 8]}
  resumed = dataclasses.replace(setup, shapes=told['shapes'])
  state = resumed.create_state(variables)
  np.testing.assert_array_equal(
    state.params['backbone']['positions'], wanted['params/backbone/positions']
  )
  shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), state)
  assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), resumed.abstract_state())
  # Once more, as after a crash before the first checkpoint, it says the same.
  assert load_start(resumed)[1] == told


def test_weights_of_another_model_are_an_input_error(tmp_path):
  folder, _ = saved(tmp_path / 'w', 'vit_1', 16, 4)
  setup = setup_of('--model', 'resnet8', '--init-from', str(folder))
  with pytest.raises(InputError, match='--init-from .*missing'):
    load_start(setup)


def test_data_that_moved_is_found_under_its_new_name(data, tmp_path):
  """And only where it is the same data."""
  config = parse(['--model', 'resnet8', '--data', f'npz:{tmp_path}/gone.npz', '--batch-size', '8'])
  facts = DataFacts.of(load_data(parse(['--data', data])))
  run = Reloaded(make_setup(config, facts), {}, 0)
  with pytest.raises(InputError, match=r'gone\.npz.*; --data and --data-dir say where it lies'):
    load_data_of(run, tmp_path)
  assert load_data_of(run, tmp_path, data=data).fingerprint == facts.fingerprint
  with np.load(data.removeprefix('npz:')) as file:
    np.savez(tmp_path / 'other.npz', **{**file, 'y_test': file['y_train'][:8] * 0})
  with pytest.raises(InputError, match=r'--data npz:.*other\.npz is not the data that'):
    load_data_of(run, tmp_path, data=f'npz:{tmp_path}/other.npz')
