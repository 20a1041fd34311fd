"""The whole path on photographs of many sizes: streamed, augmented, fine-tuned, resumed."""

import functools
import io
import json
import shutil

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache
from PIL import Image

import jattn
from experiments import config as configuration
from experiments import predict, train
from experiments.reload import reload_run
from experiments.setup import DataFacts, load_data
from jattn.training.checkpoint import Checkpoints
from jattn.training.depth import Frozen, Layers
from jattn.weights import save_weights

CLASSES = ('dunes', 'lake', 'meadow', 'sky')
ORIENTATION = 0x0112


def scene(rng: np.random.Generator, label: int) -> Image.Image:
  """A smooth scene of some size, whose colour tells its class."""
  width, height = (int(side) for side in rng.integers(40, 120, 2))
  coarse = rng.uniform(0, 120, (5, 5, 3))
  coarse[..., label % 3] += 60 + 60 * (label == 3)
  small = Image.fromarray(coarse.astype(np.uint8))
  return small.resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """200 files of four classes: JPEG, a third of them turned by EXIF, and PNG."""
  root, rng = tmp_path_factory.mktemp('photographs'), np.random.default_rng(0)
  for index in range(200):
    path = root / CLASSES[index % 4] / f'{index:03}.{"png" if index % 5 == 0 else "jpg"}'
    path.parent.mkdir(exist_ok=True)
    exif = Image.Exif()
    if index % 3 == 0:
      exif[ORIENTATION] = int(rng.integers(2, 9))
    stream = io.BytesIO()
    scene(rng, index % 4).save(stream, 'PNG' if index % 5 == 0 else 'JPEG', exif=exif)
    path.write_bytes(stream.getvalue())
  return root


SETTINGS = (
  'photographs --model resnet8 --attention eca --drop-path 0.1 --freeze stage_0 --batch-size 16 '
  '--in-memory False --image-size 32 --store-size 44 --accumulate 2 --ema-decay 0.9 '
  '--optimizer.layer-decay 0.8 --augment.mixup 1 --augment.mix-probability 0.8 '
  '--steps 4 --checkpoint-every 2 --evaluate-every 4 --log-every 1'
).split()


@pytest.fixture(scope='module', autouse=True)
def _small_and_compiled_once(tmp_path_factory):
  """A named model with three blocks, on two devices; what is compiled twice is kept on disk."""
  kept = {
    'jax_enable_compilation_cache': True,
    'jax_compilation_cache_dir': str(tmp_path_factory.mktemp('compiled')),
    'jax_persistent_cache_min_compile_time_secs': 0.0,
  }
  before = {name: getattr(jax.config, name) for name in kept}
  small = functools.partial(jattn.models.resnet_cifar, depth=8, widths=(4, 8, 8))
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(jattn.models.MODELS, 'resnet8', small)
    patch.setattr('experiments.setup.devices', lambda: jax.devices()[:2])
    for name, value in kept.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()  # which looks at these settings once
    yield
    for name, value in before.items():
      jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
  """A folder with weights of the same network for ten classes, and their numbers by path."""
  model = jattn.create_model('resnet8', num_classes=10, attention='eca')
  variables = jax.jit(lambda key: model.init(key, jnp.ones((1, 32, 32, 3)), train=False))(
    jax.random.key(7)
  )
  variables = jax.tree.map(lambda leaf: leaf + 0.25, variables)
  path = save_weights(tmp_path_factory.mktemp('w') / 'w', model, variables, library='jattn')
  return path, flax.traverse_util.flatten_dict(jax.device_get(variables), sep='/')


@pytest.fixture(scope='module')
def command(folder, weights):
  return [*SETTINGS, '--data', f'folder:{folder}', '--init-from', str(weights[0])]


@pytest.fixture(scope='module')
def finished(command, tmp_path_factory):
  out = tmp_path_factory.mktemp('runs') / 'x'
  assert train.main([*command, '--out', str(out)]) == 0
  return out


def last_state(out) -> dict[str, np.ndarray]:
  """Every array of the last checkpoint, by path."""
  setup = reload_run(out).setup
  state = Checkpoints(out / 'ckpt').restore(setup.abstract_state(), step=4).state
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(state))
  return {jax.tree_util.keystr(path, simple=True, separator='/'): leaf for path, leaf in leaves}


def test_it_learns_measures_and_tells(folder, finished):
  result = json.loads((finished / 'result.json').read_text())
  files = len(list(folder.rglob('*.*')))
  assert files == 200
  assert 10 < result['test_images'] < 30
  assert result['skipped_steps'] == 0
  lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
  assert all(np.isfinite(line['loss']) for line in lines)
  facts = json.loads((finished / 'data.json').read_text())
  assert (facts['size'], facts['mean'][0]) == (32, 0.485)


def test_the_frozen_prefix_is_that_of_the_file_and_the_rest_moved(weights, finished):
  start, last = weights[1], last_state(finished)
  names = {path.split('/')[2] for path in start if path.startswith('params/backbone/')}
  frozen = Frozen(Layers.of({'backbone': dict.fromkeys(names)}), 'stage_0')
  seen = set()
  for path, value in start.items():
    room, _, place = path.partition('/')
    if place.startswith('head/logits'):
      assert last[path].shape[-1] == len(CLASSES)
      continue
    ours = last[path if room == 'params' else f'stats/{path}']
    assert np.array_equal(value, ours) == frozen(place), path
    seen.add((room, frozen(place)))
  assert len(seen) == 4
  assert json.loads((finished / 'start.json').read_text())['new_head']


def test_resumed_from_the_middle_it_is_bit_equal(command, finished, tmp_path):
  copy = shutil.copytree(finished, tmp_path / 'copy')
  (copy / 'result.json').unlink()
  shutil.rmtree(copy / 'ckpt' / '4')
  assert train.main([*command, '--out', str(copy)]) == 0
  first, again = last_state(finished), last_state(copy)
  assert first.keys() == again.keys()
  for path in first:
    np.testing.assert_array_equal(first[path], again[path], err_msg=path)


def test_in_memory_the_images_are_the_same(command, finished):
  config = configuration.parse([*command, '--in-memory', 'True'])
  held, streamed = load_data(config), load_data(configuration.parse(command))
  assert DataFacts.of(held, normalization='imagenet') == reload_run(finished).setup.facts
  assert (held.size, held.eval_size) == (44, 32)
  assert (held.in_memory, streamed.in_memory) == (True, False)
  batches = [next(d.batches(batch_size=16, seed=0)) for d in (held, streamed)]
  np.testing.assert_array_equal(batches[0].images, batches[1].images)
  assert batches[0].images.shape == (16, 44, 44, 3)


def test_prediction_reads_a_file_as_evaluation_does(folder, finished):
  run = reload_run(finished)
  read = {predict._read(path, run.setup).tobytes() for path in folder.rglob('*.*')}
  batch = next(load_data(run.setup.config).eval_batches('test', batch_size=8))
  assert batch.images.shape == (8, 32, 32, 3)
  assert {image.tobytes() for image in batch.images} <= read
