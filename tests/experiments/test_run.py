"""The main job on the embedded digits, small: what it writes, and what it refuses."""

import contextlib
import functools
import json
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

import jattn
from experiments import collect, evaluate, predict, save_weights, train
from experiments.errors import ConfigError, InputError, RunError
from experiments.progress import Reporter
from experiments.reload import reload_run
from experiments.run import enter_together
from experiments.rundir import RunDirectory
from experiments.settings import TrainConfig
from jattn import training

MODEL = 'seed_classifier_tiny'
SMALL = (
  f'--model {MODEL} --steps 6 --batch-size 16 --log-every 2 --checkpoint-every 3 --evaluate-every 3'
).split()


@pytest.fixture(scope='module', autouse=True)
def _tiny():
  """Eight devices each keep and move all parameters: fewer than the seed's."""
  tiny = functools.partial(jattn.models.seed_classifier, widths=(4, 8, 8), hidden=16)
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(jattn.models.MODELS, MODEL, tiny)
    patch.setitem(jattn.models.FACTS, MODEL, jattn.models.FACTS['seed_classifier'])
    yield


def run(out, *extra):
  return train.main([*SMALL, '--out', str(out), *extra])


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
  out = tmp_path_factory.mktemp('runs') / 'x'
  assert run(out) == 0
  return out


def read(path):
  return json.loads(path.read_text())


def test_the_directory_tells_all(finished):
  names = {path.name for path in finished.iterdir()}
  assert names >= set(
    'config.json data.json env.json metrics.jsonl status.json result.json curves.png attention.png '
    'ckpt tb'.split()
  )
  result = read(finished / 'result.json')
  for key in (
    'test_accuracy choose_accuracy test_nll test_ece parameters steps seconds device '
    'images_per_second'
  ).split():
    assert result[key] is not None, key
  assert result['steps'] == 6
  assert result['test_images'] == 500
  assert result['parameters'] == 3_316
  assert np.sum(result['test_confusion']) == 500
  np.testing.assert_allclose(
    np.trace(result['test_confusion']) / 500, result['test_accuracy'], atol=1e-6
  )
  assert read(finished / 'status.json') == {'state': 'done', 'step': 6, 'reason': ''}
  env = read(finished / 'env.json')
  assert env['versions']['jax']
  assert env['devices'] == 8
  lines = [json.loads(line) for line in (finished / 'metrics.jsonl').read_text().splitlines()]
  assert [(m['step'], m['split']) for m in lines] == [
    (2, 'train'),
    (3, 'choose'),
    (4, 'train'),
    (6, 'train'),
    (6, 'choose'),
  ]
  assert any((finished / 'tb').glob('events*'))


def test_the_pictures_show_something(finished):
  for name, smallest in (('attention.png', (900, 500)), ('curves.png', (600, 250))):
    with Image.open(finished / name) as image:
      assert image.size >= smallest
      assert len(image.convert('RGB').getcolors(2**24)) > 50


def test_the_same_command_again_reports_it_done(finished, capsys):
  before = {p: p.stat().st_mtime_ns for p in finished.rglob('*.json*') if p.is_file()}
  assert run(finished) == 0
  assert 'is done: test accuracy' in capsys.readouterr().out
  assert before == {p: p.stat().st_mtime_ns for p in finished.rglob('*.json*') if p.is_file()}


def test_another_configuration_is_refused_with_the_difference(finished):
  with pytest.raises(RunError, match=r'seed: 0 -> 5') as caught:
    run(finished, '--seed', '5')
  assert caught.value.code == 4
  assert (finished / 'result.json').exists()


def test_another_data_set_under_the_same_name_is_refused(finished, tmp_path):
  copy = shutil.copytree(finished, tmp_path / 'copy')
  (copy / 'result.json').unlink()
  facts = read(copy / 'data.json')
  (copy / 'data.json').write_text(json.dumps(facts | {'fingerprint': 'other'}))
  with pytest.raises(RunError, match="another data.*\n.*fingerprint: 'other'"):
    run(copy)


def test_a_directory_in_use_is_refused(finished):
  with RunDirectory(finished), pytest.raises(RunError, match=r'in use by process \d+'):
    run(finished)


def test_interrupted_from_the_keyboard_it_saves_and_says_so(tmp_path, monkeypatch):
  once = iter([signal.SIGINT])
  monkeypatch.setattr(Reporter, 'train', lambda *_: [signal.raise_signal(n) for n in once])
  assert run(tmp_path) == 75
  status = read(tmp_path / 'status.json')
  assert (status['state'], status['step'] < 6) == ('stopped', True)
  assert 'SIGINT' in status['reason']
  assert (tmp_path / 'ckpt' / str(status['step'])).is_dir()


@pytest.mark.parametrize(
  ('held', 'others', 'message'),
  [(True, 0, 'in use by'), (False, None, 'on a file system that all processes share')],
)
def test_all_processes_enter_a_directory_or_none(tmp_path, monkeypatch, held, others, message):
  monkeypatch.setattr(training, 'tell_all', lambda n: [n, n + 1 if others is None else others])
  with contextlib.ExitStack() as stack:
    if held:
      stack.enter_context(RunDirectory(tmp_path))
    with pytest.raises(RunError, match=message):
      enter_together(RunDirectory(tmp_path), stack)


def test_a_process_that_follows_writes_nothing_and_says_what_failed(tmp_path, monkeypatch):
  monkeypatch.setattr(training, 'tell_all', lambda n: [0, n])
  out = tmp_path / 'x'
  with RunDirectory(out, follows=True) as directory:
    directory.status('running', 1)
    directory.append({'step': 1})
    directory.rewind(0)
    with contextlib.ExitStack() as stack, pytest.raises(RunError, match='the first process cannot'):
      enter_together(directory, stack)
  assert not out.exists()


def test_what_is_not_said_of_other_processes_is_asked_for(tmp_path, monkeypatch):
  monkeypatch.setenv('JAX_NUM_PROCESSES', 'two')
  with pytest.raises(ConfigError, match=r'--distributed True: .*\n.*JAX_COORDINATOR_ADDRESS'):
    run(tmp_path / 'x', '--distributed', 'True')


def test_a_directory_that_cannot_be_written_is_refused(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(RunError, match='cannot be written'):
    run(tmp_path / 'file')
  with pytest.raises(RunError, match='cannot be written'):
    run(tmp_path / 'file' / 'below')


def test_a_saved_configuration_runs_again_to_the_same_numbers(finished, tmp_path):
  out = tmp_path / 'again'
  assert train.main(['--config', str(finished / 'config.json'), '--out', str(out)]) == 0
  first, second = read(finished / 'result.json'), read(out / 'result.json')
  for key in ('test_nll', 'choose_accuracy', 'test_ece'):
    assert first[key] == second[key]


def test_evaluate_reloads_by_the_directory_alone(finished, tmp_path, capsys):
  moved = shutil.copytree(finished, tmp_path / 'moved')
  assert evaluate.main([str(moved)]) == 0
  printed = json.loads(capsys.readouterr().out)
  result = read(finished / 'result.json')
  assert printed['nll'] == pytest.approx(result['test_nll'])
  assert printed['count'] == 500
  assert len(printed['by_class']) == 10


def test_collected_seeds_have_a_line_each_and_a_mean_for_each_setting(finished, tmp_path, capsys):
  runs = []
  for seed, accuracy, start in ((0, 0.5, None), (1, 0.7, None), (0, 0.25, 0.0)):
    runs.append(tmp_path / f'{start}-{seed}')
    runs[-1].mkdir()
    shutil.copy(finished / 'env.json', runs[-1])
    for name, change in (
      ('result.json', {'seed': seed, 'test_accuracy': accuracy}),
      ('config.json', {'mimetic': start}),
    ):
      (runs[-1] / name).write_text(json.dumps(read(finished / name) | change))
  out = tmp_path / 'lines.jsonl'
  assert collect.main([*map(str, runs), '--out', str(out)]) == 0
  lines = [json.loads(line) for line in out.read_text().splitlines()]
  assert [line['id'] for line in lines] == [
    f'{MODEL}-digits-seed0',
    f'{MODEL}-digits-seed1',
    f'{MODEL}-digits-mimetic0-seed0',
  ]
  assert lines[1]['test_accuracy'] == 0.7
  assert lines[0].keys() >= {'test_nll', 'steps', 'epochs', 'precision', 'versions', 'git', 'date'}
  assert str(tmp_path) not in out.read_text()
  printed = capsys.readouterr().out
  assert f'{MODEL}-digits: test accuracy 0.6000 ± 1.2706 (95%, 2 seeds)' in printed
  assert f'{MODEL}-digits-mimetic0: test accuracy 0.2500 (1 seeds, no interval)' in printed


def test_predict_names_classes_and_draws(finished, tmp_path, capsys):
  shade = np.zeros((28, 28), np.uint8)
  shade[4:24, 12:16] = 255
  Image.fromarray(shade).save(tmp_path / 'one.png')
  Image.fromarray(shade.T).convert('RGB').save(tmp_path / 'other.bmp')
  drawn = tmp_path / 'looked.png'
  files = [str(tmp_path / 'one.png'), str(tmp_path / 'other.bmp')]
  assert predict.main([str(finished), *files, '--out', str(drawn), '--top', '10']) == 0
  lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
  assert [line['image'] for line in lines] == files
  for line in lines:
    assert sum(line['classes'].values()) == pytest.approx(1, abs=1e-4)
    assert list(line['classes'].values()) == sorted(line['classes'].values(), reverse=True)
  assert drawn.stat().st_size > 5000


def test_predict_names_a_bad_image(finished, tmp_path):
  (tmp_path / 'page.png').write_text('<html>')
  with pytest.raises(InputError, match=r'page\.png is not an image'):
    predict.main([str(finished), str(tmp_path / 'page.png')])
  with pytest.raises(InputError, match=r'none\.png does not exist'):
    predict.main([str(finished), str(tmp_path / 'none.png')])


def test_evaluate_says_what_is_no_run(tmp_path):
  with pytest.raises(RunError, match='not a run directory'):
    evaluate.main([str(tmp_path)])


def test_unknown_models_and_impossible_batches_are_refused_before_data(tmp_path, monkeypatch):
  monkeypatch.setattr('experiments.run.load_data', lambda config: pytest.fail('loaded data'))
  with pytest.raises(ConfigError, match="--model .* did you mean 'seed_classifier"):
    run(tmp_path / 'a', '--model', 'seed_clasifier')
  with pytest.raises(ConfigError, match="--attention squeeze_exite: .* mean 'squeeze_excite'"):
    run(tmp_path / 'a', '--model', 'resnet20', '--attention', 'squeeze_exite')
  with pytest.raises(ConfigError, match=f"'{MODEL}' takes no setting 'pool'"):
    run(tmp_path / 'a', '--pool', 'average')
  for flags, message in (
    ('--drop-path 0.1', f"--drop-path 0.1: model '{MODEL}' takes no setting 'drop_path'"),
    ('--mimetic 0 --model resnet20', "model 'resnet20' takes no setting 'mimetic'"),
    ('--optimizer.layer-decay 0.5', f'--optimizer.layer-decay 0.5, .*{MODEL}: .* needs blo'),
    (
      '--model resnet20 --freeze stage_7',
      "--freeze stage_7, --model resnet20: nothing is called 'stage_7'.*'stage_2', 'backbone'",
    ),
    ('--freeze stage_9', f'--freeze stage_9, --model {MODEL}: '),
    (f'--init-from {tmp_path}/none', '--init-from .*none does not exist'),
  ):
    with pytest.raises(ConfigError, match=message) as caught:
      run(tmp_path / 'a', *flags.split())
    assert '\n' not in str(caught.value)
  with pytest.raises(ConfigError, match='--batch-size 12 must be a multiple'):
    run(tmp_path / 'b', '--batch-size', '12')
  with pytest.raises(ConfigError, match='--fsdp 3 must divide'):
    run(tmp_path / 'c', '--fsdp', '3')


def test_data_that_is_not_there_is_an_input_error(tmp_path):
  with pytest.raises(InputError, match='npz:') as caught:
    run(tmp_path / 'a', '--data', f'npz:{tmp_path}/none.npz')
  assert caught.value.code == 3


def save_images(path, train, test):
  """Archives of so many images of 32 x 32 pixels and four classes."""
  sizes = {'train': train, 'test': test}
  rng = np.random.default_rng(0)
  arrays = {f'x_{s}': rng.integers(0, 255, (n, 32, 32, 3), np.uint8) for s, n in sizes.items()}
  np.savez(path, **arrays, **{f'y_{split}': np.arange(n) % 4 for split, n in sizes.items()})
  return f'npz:{path}'


def test_data_that_could_not_be_measured_is_refused_before_training(tmp_path, monkeypatch):
  monkeypatch.setattr('experiments.run.make_setup', lambda *_, **__: pytest.fail('went on'))
  data = save_images(tmp_path / 'd.npz', 40, 0)
  with pytest.raises(InputError, match="split 'test' is empty; give more images"):
    run(tmp_path / 'a', '--data', data)


def test_numbers_that_the_data_cannot_bear_are_refused(tmp_path):
  data = save_images(tmp_path / 'd.npz', 40, 8)
  with pytest.raises(ConfigError, match=r'--augment.crop-padding 100 must be below .* 32'):
    run(tmp_path / 'a', '--data', data, '--augment.crop-padding', '100')
  command = [arg for arg in SMALL if arg not in ('--steps', '6')]
  with pytest.raises(ConfigError, match=r'--epochs 4e\+09: 9.0e\+09 steps are more'):
    train.main([*command, '--out', str(tmp_path / 'a'), '--data', data, '--epochs', '4e9'])


def test_a_bad_image_of_data_that_is_not_held_is_an_input_error(tmp_path):
  rng = np.random.default_rng(0)
  for path in (tmp_path / 'images' / name for name in ('a', 'b')):
    path.mkdir(parents=True)
    for index in range(12):
      Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(path / f'{index}.png')
      whole = (path / f'{index}.png').read_bytes()
      (path / f'{index}.png').write_bytes(whole[: len(whole) // 2])
  streamed = '--in-memory False --image-size 32'.split()
  with pytest.raises(InputError, match=r'--data folder:.*\.png'):
    run(tmp_path / 'x', '--data', f'folder:{tmp_path}/images', *streamed)


def test_a_wrong_command_leaves_no_trace_where_the_configuration_was_lost(finished, tmp_path):
  copy = shutil.copytree(finished, tmp_path / 'copy')
  for name in ('result.json', 'config.json'):
    (copy / name).unlink()
  with pytest.raises(RunError, match='seed: 0 -> 5'):
    run(copy, '--seed', '5')
  assert not (copy / 'config.json').exists()


def test_damaged_files_of_a_run_are_named(finished, tmp_path):
  copy = shutil.copytree(finished, tmp_path / 'copy')
  with open(copy / 'metrics.jsonl', 'ab') as file:
    file.write(b'null\n\xff\xfe\x00 7\n{"step": 1')
  directory = RunDirectory(copy)
  assert directory.metrics() == RunDirectory(finished).metrics()
  for text in ('[]', ''):
    (copy / 'config.json').write_text(text)
    with pytest.raises(RunError, match=r'config\.json .*; bring it back from a copy, or remove it'):
      run(copy)
  with pytest.raises(RunError, match='not a run directory'):
    evaluate.main([str(copy / 'metrics.jsonl')])


@pytest.mark.parametrize('out', ['none/looked.png', 'looked.xyz', 'looked', '.'])
def test_predict_refuses_a_place_for_pictures_before_it_looks(tmp_path, out):
  with pytest.raises(ConfigError, match='--out .* must be a file called .png in a folder that is'):
    predict.main([str(tmp_path), 'a.png', '--out', str(tmp_path / out)])


def test_what_has_nothing_to_do_says_so(tmp_path):
  with pytest.raises(ConfigError, match='name at least one run directory'):
    collect.main([])
  with pytest.raises(ConfigError, match='--top 0 must be at least 1'):
    predict.main([str(tmp_path), 'a.png', '--top', '0'])


def test_a_model_that_cannot_take_the_data_is_refused(tmp_path):
  rng = np.random.default_rng(0)
  np.savez(
    tmp_path / 'd.npz',
    x_train=rng.integers(0, 255, (40, 4, 4, 3)).astype(np.uint8),
    y_train=np.arange(40) % 4,
    x_test=rng.integers(0, 255, (8, 4, 4, 3)).astype(np.uint8),
    y_test=np.arange(8) % 4,
  )
  with pytest.raises(ConfigError, match='got 4x4'):
    run(tmp_path / 'a', '--data', f'npz:{tmp_path}/d.npz')


def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, capsys):
  copy = shutil.copytree(finished, tmp_path / 'copy')
  (copy / 'result.json').unlink()
  files = [p for p in (copy / 'ckpt' / '6' / 'state').rglob('*') if p.is_file()]
  victim = max(files, key=lambda p: p.stat().st_size)
  content = bytearray(victim.read_bytes())
  content[len(content) // 2] ^= 4
  victim.write_bytes(content)
  assert run(copy) == 0
  printed = capsys.readouterr().out
  assert 'warning:' in printed
  assert 'going on from step 3' in printed
  # What was done again is what was done before.
  assert read(copy / 'result.json')['test_nll'] == read(finished / 'result.json')['test_nll']
  steps = [json.loads(line)['step'] for line in (copy / 'metrics.jsonl').read_text().splitlines()]
  assert steps == sorted(steps)


def test_a_missing_platform_is_said_in_two_lines(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.train', '--out', str(tmp_path / 'x')],
    capture_output=True,
    text=True,
    env={'JAX_PLATFORMS': 'cuda', 'PATH': '', 'HOME': str(tmp_path)},
  )
  assert done.returncode == 2
  assert 'Traceback' not in done.stderr
  assert 'JAX_PLATFORMS=cuda cannot be used here' in done.stderr
  assert 'jattn[cuda12]' in done.stderr


def test_weights_leave_as_files_and_come_back(finished, tmp_path, capsys):
  folder = tmp_path / 'weights'
  assert save_weights.main([str(finished), '--out', str(folder)]) == 0
  assert capsys.readouterr().out.strip() == f'wrote {folder}'
  saved, run = read(folder / 'config.json'), reload_run(finished)
  assert (saved['num_classes'], saved['library_name']) == (10, 'jattn')
  assert saved['pretrained_cfg']['mean'] == pytest.approx(run.setup.facts.mean)
  assert saved['pretrained_cfg']['input_size'] == [3, 32, 32]
  again = jattn.load_weights(folder, jattn.create_model(MODEL))
  for one, other in zip(jax.tree.leaves(again), jax.tree.leaves(run.variables), strict=True):
    np.testing.assert_array_equal(one, other)
  with pytest.raises(RunError, match='overwrite'):
    save_weights.main([str(finished), '--out', str(folder)])
  assert save_weights.main([str(finished), '--out', str(folder), '--overwrite', 'True']) == 0


def test_weights_have_timms_names_only_where_the_network_is_timms():
  assert save_weights.naming(TrainConfig(model='botnet26t_256'))['library'] == 'timm'
  for changed in (
    TrainConfig(model='botnet26t_256', attention='none'),
    TrainConfig(model='resnet18', pool='max'),
    TrainConfig(model='cct_2_3x2_32'),
    TrainConfig(),
  ):
    assert save_weights.naming(changed)['library'] == 'jattn'
  slots = save_weights.naming(TrainConfig(model='resnet20', attention='eca'))['settings']
  assert slots == {'attention': 'eca'}
