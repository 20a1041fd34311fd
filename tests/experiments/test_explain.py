"""Explanations of a run: by command and at its end, what they hold and what is refused."""

import functools
import json
import pathlib
import shutil
import struct
import subprocess
import sys
import types

import jax
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import jattn
from experiments import explain, explanations, train
from experiments.errors import ConfigError, InputError, RunError
from experiments.explanations import Explainer, Sample
from experiments.map_sheets import sheet
from experiments.reload import load_data_of, reload_run
from experiments.settings import TrainConfig
from experiments.setup import load_data
from jattn.explain.report import colours

ROOT = pathlib.Path(__file__).parent.parent.parent
DATA = 'scenes:cluttered?size=32&clutter=1&train=32&choose=6&test=6'
FLAGS = f'--model tiny --data {DATA} --steps 2 --batch-size 8 --log-every 1 --evaluate-every 1'
METHODS = ['attention', 'centre']


@pytest.fixture(scope='module', autouse=True)
def _tiny():
  tiny = functools.partial(jattn.models.seed_classifier, widths=(4, 8, 8), hidden=8)
  load = functools.cache(lambda: load_data(TrainConfig(data=DATA)))
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(jattn.models.MODELS, 'tiny', tiny)
    patch.setattr(explanations, 'DEFAULTS', tuple(METHODS))
    for module in ('run', 'reload'):  # scenes are drawn once
      patch.setattr(f'experiments.{module}.load_data', lambda _: load())
    patch.setattr('experiments.run.draw', lambda *_: None)  # seconds, and other tests look at it
    yield


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  out = tmp_path_factory.mktemp('runs') / 'x'
  assert train.main([*FLAGS.split(), '--explain', '6', '--out', str(out)]) == 0
  return out


def read(path):
  return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f'{name} in {path}'))


def pictures_in(folder):
  """(step, tag) of every image among the events."""
  found = []
  for path in folder.glob('events*'):
    content, at = path.read_bytes(), 0
    while at < len(content):
      (length,) = struct.unpack_from('<Q', content, at)
      event = Event.FromString(content[at + 12 : at + 12 + length])
      found += [(event.step, v.tag) for v in event.summary.value if v.HasField('image')]
      at += 16 + length
  return sorted(found)


def test_a_run_shows_its_maps_at_each_evaluation_and_reports_at_the_end(finished):
  tags = ('explain/attention', 'explain/grad_cam')
  assert pictures_in(finished / 'tb') == [(step, tag) for step in (1, 2) for tag in tags]
  page = (finished / 'explain' / 'report.html').read_text()
  assert page.count('<tbody class="image"') == 6
  assert 'the first 6 of 6 (test)' in page
  result = read(finished / 'result.json')
  assert f'{result["test_accuracy"]:.1%} of 6 images' in page


def test_showing_maps_changes_nothing_that_is_trained(finished, tmp_path):
  out = tmp_path / 'plain'
  assert train.main([*FLAGS.split(), '--out', str(out)]) == 0
  assert not (out / 'explain').exists()
  assert pictures_in(out / 'tb') == []
  pairs = zip(
    *(jax.tree.leaves(reload_run(path).variables) for path in (finished, out)), strict=True
  )
  for one, other in pairs:
    np.testing.assert_array_equal(one, other)


def test_a_run_from_before_may_go_on_with_maps(finished, tmp_path, capsys):
  copy = shutil.copytree(finished, tmp_path / 'copy')
  config = read(copy / 'config.json')
  assert config.pop('explain') == 6
  (copy / 'config.json').write_text(json.dumps(config))
  assert train.main([*FLAGS.split(), '--explain', '1', '--out', str(copy)]) == 0
  assert 'is done' in capsys.readouterr().out
  with pytest.raises(ConfigError, match='--explain -1 must be at least 0'):
    train.main([*FLAGS.split(), '--explain', '-1', '--out', str(copy)])


@pytest.fixture(scope='module')
def explained(finished, tmp_path_factory):
  out = tmp_path_factory.mktemp('explained') / 'deep' / 'out'
  arguments = [str(finished), '--images', '9', '--target', 'true', '--out', str(out)]
  assert explain.main([*arguments, '--methods', *METHODS]) == 0
  return out


def test_the_directory_holds_page_pictures_maps_and_scores(explained):
  names = {path.name for path in explained.iterdir()}
  overlays = {f'overlay_{method}.png' for method in METHODS}
  assert names == {'report.html', 'maps.npz', 'scores.json'} | overlays
  with Image.open(explained / 'overlay_centre.png') as image:
    assert image.width > 6 * 128


def test_maps_come_back_as_they_were(finished, explained):
  run = reload_run(finished)
  dataset = load_data_of(run, finished)
  batch = next(iter(dataset.eval_batches('test', batch_size=6)))
  truth = dataset.truth('test', range(6))
  with np.load(explained / 'maps.npz', allow_pickle=False) as held:
    assert set(held) == {*METHODS, *'images labels predicted targets masks boxes'.split()}
    np.testing.assert_array_equal(held['images'], batch.images)
    np.testing.assert_array_equal(held['targets'], batch.labels)
    np.testing.assert_array_equal(held['masks'], truth.masks)
    np.testing.assert_array_equal(held['boxes'], truth.boxes)
    for method in METHODS:
      assert (held[method].dtype, held[method].shape) == (np.float32, (6, 32, 32))
    images = run.setup.prepare(held['images'])
    logits = jax.jit(lambda v, x: run.setup.model.apply(v, x, train=False).logits)(
      jax.device_get(run.variables), images
    )
    np.testing.assert_array_equal(held['predicted'], np.argmax(logits, axis=1))


def test_scores_hold_maps_against_the_filled_boxes(explained):
  told = read(explained / 'scores.json')
  with np.load(explained / 'maps.npz', allow_pickle=False) as held:
    arrays = dict(held)
  assert list(told['methods']) == METHODS
  for method in METHODS:
    values, energies, areas = [], [], []
    for a, ((top, left, bottom, right),) in zip(arrays[method], arrays['boxes'], strict=True):
      inside = np.zeros((32, 32), bool)
      inside[top:bottom, left:right] = True
      values.append(inside[a == a.max()].mean())
      energies.append(a[inside].sum() / a.sum())
      areas.append(inside.mean())
    scores = told['methods'][method]
    assert list(scores) == [
      'pointing_game',
      'energy',
      'energy_lift',
      'auroc',
      'deletion',
      'insertion',
    ]
    np.testing.assert_allclose(scores['pointing_game']['values'], values, rtol=1e-5)
    np.testing.assert_allclose(scores['energy']['values'], energies, rtol=1e-4)
    np.testing.assert_allclose(scores['energy']['chance'], np.mean(areas), rtol=1e-5)
    np.testing.assert_allclose(scores['energy']['mean'], np.mean(energies), rtol=1e-4)
    assert scores['energy']['low'] <= scores['energy']['mean'] <= scores['energy']['high']
    assert scores['energy']['count'] == 6
    assert (scores['deletion']['higher_is_better'], scores['insertion']['higher_is_better']) == (
      False,
      True,
    )
  assert list(told['attention_faithfulness']) == ['attention_0/weights']
  assert told['facts']['asked about'] == 'the true class'


@pytest.fixture(scope='module')
def explainer(finished):
  run = reload_run(finished)
  sample = explanations.take(load_data_of(run, finished), 'test', 6)
  return Explainer(run.setup, sample), run.variables


def test_data_that_knows_no_answer_gets_the_scores_that_need_none(explainer):
  known, variables = explainer
  plain = Explainer(known.setup, Sample(known.sample.images, known.sample.labels, None))
  found = plain.explanation(variables, methods=['centre'])
  assert set(found.scores['centre']) == {'deletion', 'insertion'}
  np.testing.assert_array_equal(found.targets, found.predicted)
  heads = found.heads['attention_0/weights']
  np.testing.assert_allclose(heads.sum(axis=(2, 3)), 1, rtol=1e-5)


@pytest.mark.parametrize(
  ('model', 'missing'),
  [
    ('seed_classifier_weighted_average', {'rollout'}),
    ('seed_classifier_no_attention', {'attention', 'rollout'}),
  ],
)
def test_what_a_model_cannot_serve_is_left_out_with_a_reason(explainer, model, missing):
  known, _ = explainer
  model = getattr(jattn.models, model)(10, widths=(2, 4, 8), hidden=2)
  other = Explainer(known.setup, known.sample)
  other.setup = types.SimpleNamespace(model=model)
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), other.images, train=False))
  asked = ['attention', 'rollout', 'grad_cam', 'random']
  served, skipped = other.servable(asked, variables)
  assert served == [method for method in asked if method not in missing]
  assert set(skipped) == missing
  assert all('map' in why for why in skipped.values())


def test_a_method_asked_for_that_the_model_cannot_serve_is_refused(finished, explainer):
  known, variables = explainer
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(known, 'servable', lambda *_: (['centre'], {'rollout': 'there is no map'}))
    with pytest.raises(ConfigError, match='rollout cannot explain this model: there is no map'):
      known.explanation(variables, methods=['rollout', 'centre'])
    found = known.explanation(variables)
  assert (list(found.maps), found.skipped) == (['centre'], {'rollout': 'there is no map'})


def test_mistakes_are_answered_in_a_line(finished, tmp_path):
  with pytest.raises(ConfigError, match="called 'gradcam'; did you mean 'grad_cam'") as caught:
    explain.main([str(tmp_path / 'none'), '--methods', 'gradcam'])
  assert '\n' not in str(caught.value)
  with pytest.raises(ConfigError, match='--images 0 must be at least 1'):
    explain.main([str(finished), '--images', '0'])
  with pytest.raises(RunError, match='not a run directory'):
    explain.main([str(tmp_path)])
  (tmp_path / 'file').write_text('')
  with pytest.raises(RunError, match='file cannot be written'):
    explain.main([str(finished), '--out', str(tmp_path / 'file'), '--methods', 'centre'])


def test_a_run_without_a_checkpoint_and_one_of_other_data_are_refused(finished, tmp_path):
  copy = tmp_path / 'copy'
  copy.mkdir()
  for name in ('config.json', 'data.json'):
    shutil.copy(finished / name, copy)
  with pytest.raises(RunError, match='has no checkpoint yet'):
    explain.main([str(copy)])
  shutil.copytree(finished / 'ckpt', copy / 'ckpt', dirs_exist_ok=True)
  facts = read(copy / 'data.json')
  (copy / 'data.json').write_text(json.dumps(facts | {'fingerprint': 'other'}))
  with pytest.raises(InputError, match='is not the data that .*copy was trained on'):
    explain.main([str(copy)])


def test_help_does_not_wait_for_jax():
  code = (
    "import sys\nfrom experiments import explain\ntry: explain.main(['--help'])\n"
    'except SystemExit: pass\n'
    "sys.exit(' '.join({'jax', 'jattn', 'numpy', 'PIL'} & set(sys.modules)) or 0)"
  )
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=ROOT)
  assert done.returncode == 0, done.stderr
  assert '--methods' in done.stdout


def test_a_sheet_shows_each_map_in_the_colours_of_the_page_and_each_outline():
  images = np.zeros((2, 4, 4, 3), np.uint8)
  maps = np.ones((2, 4, 4), np.float32)
  masks = np.zeros((2, 4, 4), bool)
  masks[1, 1:3, 1:3] = True
  drawn = sheet(images, maps, ['one', 'two taken for 三, and more than fits below it'], masks=masks)
  even = np.round(0.65 * colours.colours_of(1.0)).astype(np.uint8)
  np.testing.assert_array_equal(drawn[6, 6], even)
  left = 6 + 128 + 6  # of the second picture, 32 pixels a pixel
  np.testing.assert_array_equal(drawn[6 + 32, left + 32], [255] * 3)
  np.testing.assert_array_equal(drawn[6 + 31, left + 32], [0] * 3)
  np.testing.assert_array_equal(drawn[6 + 48, left + 48], even)
