"""The rows for a GPU, without one: the two ends of a worker, and what is made of the turns."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from experiments import cifar_file
from experiments.errors import ConfigError, InputError, RunError
from experiments.speed import __main__ as speed
from experiments.speed import gpu, gpu_jattn, sprint_peer, worker


class Runner:
  """A framework that counts."""

  def __init__(self):
    self.steps = self.waits = 0

  def describe(self):
    return {'device': 'none'}

  def _step(self):
    self.steps += 1

  def prepare(self, steps):
    return {
      n: self._step if s['part'] == 'good' else MemoryError('full\nmore') for n, s in steps.items()
    }

  def wait(self):
    self.waits += 1

  def measure(self, part, **settings):
    return {'part': part, **settings}


def ask(*requests):
  runner, answers = Runner(), io.StringIO()
  lines = io.StringIO(''.join(json.dumps(request) + '\n' for request in requests))
  worker.serve(runner, lines, answers, turn=0.0)
  return runner, [json.loads(line) for line in answers.getvalue().splitlines()]


def test_a_worker_answers_each_request_and_outlives_what_fails():
  steps = {'a': {'part': 'good'}, 'b': {'part': 'bad'}}
  runner, found = ask(
    {'do': 'describe'},
    {'do': 'prepare', 'steps': steps},
    {'do': 'turn', 'name': 'b'},
    {'do': 'turn', 'name': 'a'},
    {'do': 'measure', 'part': 'p', 'rounds': 3},
  )
  assert found[0] == {'answer': {'device': 'none'}}
  assert found[1] == {'answer': {'a': None, 'b': 'MemoryError: full'}}
  assert found[2] == {'error': "KeyError: 'b'"}
  assert found[3]['answer'] > 0
  assert found[4] == {'answer': {'part': 'p', 'rounds': 3}}
  assert runner.steps == 5  # three to warm up, one to choose the repeats, one in the turn


def test_a_worker_of_its_own_process_and_one_that_cannot_start():
  with worker.Worker('jattn', {'JAX_PLATFORMS': 'cpu'}) as ours:
    assert ours.ask(do='describe')['backend'] == 'cpu'
    step = {'part': 'attention', 'implementation': 'dense', 'batch': 1, 'positions': 4}
    step |= {'heads': 1, 'widths': [2, 3]}
    steps = {'dense': step, 'cudnn': {**step, 'implementation': 'cudnn'}}
    found = ours.ask(do='prepare', steps=steps)
    assert found['dense'] is None
    assert 'NVIDIA' in found['cudnn']
    assert ours.ask(do='turn', name='dense') > 0
    with pytest.raises(RunError, match='no such part|KeyError'):
      ours.ask(do='measure', part='nothing')
  with (
    worker.Worker('nothing') as none,
    pytest.raises(RunError, match='nothing: the process ended'),
  ):
    none.ask(do='describe')


class Stub:
  """A worker whose turns take given seconds."""

  def __init__(self, seconds):
    self.seconds = seconds

  def ask(self, do, **request):
    if do == 'prepare':
      return {name: None if name in self.seconds else 'no kernel' for name in request['steps']}
    return self.seconds[request['name']]


def test_the_automatic_choice_is_set_against_the_best_of_the_others():
  ours, theirs = Stub({'auto': 0.004, 'fast': 0.001}), Stub({'a': 0.002, 'b': 0.003})
  mine = {'jattn': (ours, 'auto', {}), 'jattn fast': (ours, 'fast', {}), 'jattn x': (ours, 'x', {})}
  others = {name: (theirs, name, {}) for name in 'abc'}
  found = gpu.Suite()._turns(4, mine, others)
  assert found['ratio'] == pytest.approx(0.5)
  assert found['ratio_of_best'] == pytest.approx(2)
  assert found['missing'] == {'jattn x': 'no kernel', 'c': 'no kernel'}
  assert found['rounds'] == 4
  with pytest.raises(RunError, match='PyTorch: no kernel'):
    gpu.Suite()._turns(4, mine, {'c': (theirs, 'c', {})})


def test_idle_is_what_no_span_covers():
  assert gpu_jattn.idle_share([(5, 6), (0, 2), (1, 4)]) == pytest.approx(1 / 6)
  assert gpu_jattn.idle_share([(0, 9), (2, 3), (9, 10)]) == 0


def test_runs_of_the_peer_are_timed_by_its_own_clock():
  class Peer:
    def main(self, run, model):
      self.print_training_details({'time_seconds': 1.0}, is_final_entry=False)
      self.print_training_details({'time_seconds': 9.0 if run == 'warmup' else 2.0 + run}, True)
      return 0.94

  found = sprint_peer.time_runs(Peer(), None, 3)
  assert found['all_seconds'] == [2, 3, 4]
  assert found['seconds'] == 3
  assert len(found['accuracies']) == 3


def test_images_carried_as_stored_come_back(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (3, 4, 4, 3), np.uint8)

  def stored(image):
    opened = io.BytesIO()
    Image.fromarray(image).save(opened, 'png')
    return opened.getvalue()

  content = {'train': (list(map(stored, images)), [2, 0, 1]), 'test': ([stored(images[1])], [1])}
  packed, out = tmp_path / 'packed.npz', tmp_path / 'arrays.npz'
  cifar_file.write(packed, content)
  assert cifar_file.as_arrays(packed, out) == out
  with np.load(out) as arrays:
    np.testing.assert_array_equal(arrays['x_train'], images)
    np.testing.assert_array_equal(arrays['y_train'], [2, 0, 1])
    np.testing.assert_array_equal(arrays['x_test'], images[1:2])
  assert cifar_file.as_arrays(out, packed) == out
  np.savez(tmp_path / 'other.npz', a=1)
  with pytest.raises(InputError, match='other.npz'):
    cifar_file.as_arrays(tmp_path / 'other.npz', out)


def test_without_a_gpu_the_rows_are_those_for_a_cpu(monkeypatch, capsys):
  facts = {'backend': 'cpu', 'versions': {}}
  monkeypatch.setattr(gpu, 'describe', lambda: facts)
  row = speed.Row('one', '', lambda found: True, lambda n: {'id': 'C1', 'ratio': 1.0})
  monkeypatch.setattr(speed, 'rows', lambda: {'C1': row})
  assert speed.main(['--suite', 'gpu', '--rounds', '1']) == 0
  found = capsys.readouterr()
  assert 'there is no GPU here' in found.err
  assert found.out.splitlines()[-1].startswith('C1')


def test_with_a_gpu_its_rows_are_measured_until_the_time_is_up(monkeypatch, capsys):
  monkeypatch.setattr(gpu, 'describe', lambda: {'backend': 'gpu', 'versions': {}})
  assert speed.main(['--suite', 'gpu', '--minutes', '0']) == 0
  found = capsys.readouterr()
  names = [line.split()[0] for line in found.out.splitlines()[1:]]
  assert names == ['G1', 'G3', 'G2', 'G6', 'G4', 'G5', 'G7']
  assert found.err.count('are over') == 7


def test_the_sprint_says_what_it_needs():
  with pytest.raises(ConfigError, match='--data'):
    gpu.Suite().sprint(1)
