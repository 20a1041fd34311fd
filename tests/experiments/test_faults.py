"""Killed, asked to leave, diverged: nothing is lost, and going on changes not one bit."""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from experiments import train
from experiments.errors import Diverged

ROOT = pathlib.Path(__file__).parent.parent.parent
# Dropout is in the model; augmentation and the moving average are on.
COMMAND = (
  '--steps 12 --batch-size 8 --log-every 1 --checkpoint-every 3 --evaluate-every 6 '
  '--ema-decay 0.9 --augment.crop-padding 2 --augment.flip True --augment.mixup 1 '
  '--augment.erasing 0.5'
).split()


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> str:
  """A few small images: what is tested is not how they are read."""
  rng = np.random.default_rng(0)
  path = tmp_path_factory.mktemp('data') / 'images.npz'
  images, labels = rng.integers(0, 256, (160, 32, 32, 3), np.uint8), np.arange(160) % 10
  np.savez(path, x_train=images, y_train=labels, x_test=images[:16], y_test=labels[:16])
  return f'npz:{path}'


def start(out: pathlib.Path, data: str, *flags: str, **environment: str) -> subprocess.Popen:
  place = ['--data', data, '--out', str(out)]
  return subprocess.Popen(
    [sys.executable, '-m', 'experiments.train', *COMMAND, *flags, *place],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    env=os.environ | {'JAX_PLATFORMS': 'cpu', 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'} | environment,
  )


def start_two(out: pathlib.Path, data: str) -> list[subprocess.Popen]:
  """One run of two processes, which share the parameters."""
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'localhost:{free.getsockname()[1]}'
  return [
    start(
      out,
      data,
      *'--distributed True --fsdp 2'.split(),
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(index),
    )
    for index in range(2)
  ]


def finish(process: subprocess.Popen) -> tuple[int, str]:
  output, _ = process.communicate(timeout=240)
  return process.returncode, output


def wait_for(out: pathlib.Path, step: int, process: subprocess.Popen) -> None:
  """Until the run has logged ``step``."""
  deadline = time.monotonic() + 240
  while time.monotonic() < deadline:
    assert process.poll() is None, process.stdout.read()
    metrics = out / 'metrics.jsonl'
    if metrics.exists() and f'"step": {step},' in metrics.read_text():
      return
    time.sleep(0.01)
  pytest.fail(f'step {step} did not come')


def last_state(out: pathlib.Path) -> dict[str, np.ndarray]:
  """Every array of the last checkpoint, by path."""
  from experiments import config as configuration
  from experiments.reload import DataFacts, make_setup
  from jattn.training.checkpoint import Checkpoints

  facts = DataFacts.from_json(json.loads((out / 'data.json').read_text()))
  setup = make_setup(configuration.load(out / 'config.json'), facts)
  restored = Checkpoints(out / 'ckpt').restore(setup.abstract_state())
  assert restored.step == 12
  leaves = jax.tree_util.tree_leaves_with_path(jax.device_get(restored.state))
  return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


@pytest.fixture(scope='module')
def uninterrupted(data, tmp_path_factory):
  out = tmp_path_factory.mktemp('whole') / 'run'
  code, output = finish(start(out, data))
  assert code == 0, output
  return out


def assert_equal_bits(a: pathlib.Path, b: pathlib.Path) -> None:
  one, other = last_state(a), last_state(b)
  assert one.keys() == other.keys()
  for path, leaf in one.items():
    assert leaf.tobytes() == other[path].tobytes(), path

  def lines(out):
    kept = []
    for line in (out / 'metrics.jsonl').read_text().splitlines():
      values = json.loads(line)
      values.pop('images_per_second', None)
      kept.append(values)
    return kept

  assert lines(a) == lines(b)


def test_asked_to_leave_then_killed_at_a_random_moment_and_going_on_is_bit_equal(
  uninterrupted, data, tmp_path
):
  out = tmp_path / 'interrupted'
  left = asked_to_leave(out, data)
  moment = random.SystemRandom().randrange(left + 1, 12)
  process = start(out, data)
  wait_for(out, moment, process)
  process.send_signal(signal.SIGKILL)
  _, output = finish(process)
  assert f'going on from step {left}' in output
  assert not (out / 'result.json').exists()
  code, output = finish(start(out, data))
  assert code == 0, output
  assert 'going on from step' in output, f'killed at {moment}: {output}'
  assert_equal_bits(uninterrupted, out)


def asked_to_leave(out: pathlib.Path, data: str) -> int:
  """Returns the step that was saved."""
  process = start(out, data)
  wait_for(out, 4, process)
  process.send_signal(signal.SIGTERM)
  code, output = finish(process)
  assert code == 75, output
  status = json.loads((out / 'status.json').read_text())
  assert status['state'] == 'stopped'
  assert 'SIGTERM' in status['reason']
  assert (out / 'ckpt' / str(status['step'])).is_dir()
  return status['step']


def test_two_processes_stop_together_go_on_and_do_what_one_does(uninterrupted, data, tmp_path):
  out = tmp_path / 'two'
  processes = start_two(out, data)
  try:
    deadline = time.monotonic() + 240
    while not (out / 'status.json').exists():
      assert time.monotonic() < deadline
      assert processes[1].poll() is None, finish(processes[1])
      time.sleep(0.01)
    time.sleep(0.5)  # it compiles now, for longer than JAX takes to notice a signal
    processes[0].send_signal(signal.SIGINT)
    (code, told), (other, _) = map(finish, processes)
    assert (code, other) == (75, 75), told
    status = json.loads((out / 'status.json').read_text())
    left = status['step']
    assert status['state'] == 'stopped'
    assert 'SIGINT' in status['reason']
    assert left < 12
    processes = start_two(out, data)
    (code, told), (other, silent) = map(finish, processes)
  finally:
    for process in processes:
      process.kill()
  assert (code, other) == (0, 0), told
  assert not left or f'going on from step {left}' in told
  assert 'test accuracy' in told
  assert 'test accuracy' not in silent
  assert len(list((out / 'tb').iterdir())) == 2  # the first process's, of both times
  assert sorted(int(p.name) for p in (out / 'ckpt').iterdir() if p.name.isdecimal())[-2:] == [9, 12]

  def losses(run):
    lines = map(json.loads, (run / 'metrics.jsonl').read_text().splitlines())
    return [(line['step'], line['split'], line['loss']) for line in lines]

  for (step, split, loss), (*same, want) in zip(losses(out), losses(uninterrupted), strict=True):
    assert [step, split] == same
    # Sums over two devices round otherwise, and AdamW makes equal steps of small gradients.
    assert loss == pytest.approx(want, rel=1e-3), (step, split)


def test_divergence_stops_with_a_message_and_keeps_the_last_good_checkpoint(data, tmp_path):
  """Images of NaN cannot come from a file, so the learning rate is made to overflow."""
  out = tmp_path / 'x'
  arguments = (
    '--model seed_classifier_weighted_average --steps 40 --batch-size 8 --log-every 2 '
    '--checkpoint-every 2 --optimizer.name sgd '
    '--optimizer.learning-rate 1e30 --optimizer.warmup 0.9 --optimizer.clip-norm None --max-skips 2'
  ).split()
  with pytest.raises(Diverged, match='2 updates in a row were not finite') as caught:
    train.main([*arguments, '--data', data, '--out', str(out)])
  assert caught.value.code == 5
  status = json.loads((out / 'status.json').read_text())
  assert status['state'] == 'diverged'
  assert not (out / 'result.json').exists()
