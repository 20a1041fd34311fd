"""What several processes must do alike; ``tests/experiments/test_faults.py`` runs two."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.training import StepMetrics, checkpoint
from jattn.training.checkpoint import CheckpointError, Checkpoints
from jattn.training.loop import _Log


@pytest.mark.parametrize(('processes', 'first'), [(1, 1), (2, 17)])
def test_what_is_ready_is_read_early_only_where_nobody_else_must_know(
  monkeypatch, processes, first
):
  """Before a step each process has read the metrics of the same ones, or one would stop alone."""
  monkeypatch.setattr(jax, 'process_count', lambda: processes)
  metrics = StepMetrics(*(jnp.asarray(number) for number in (8, 4.0, 5, 1.0, 0, 0)))
  jax.block_until_ready(metrics)
  read, added = [], 0
  log = _Log(lambda step, _: read.append(step), every=1, max_skips=3)
  while not read:
    added += 1
    log.add(added, metrics)
  assert added == first


def told(monkeypatch, *differences):
  """What the other processes answer, less what this one says."""
  monkeypatch.setattr(checkpoint, 'tell_all', lambda n: [n, *(n + other for other in differences)])


def test_processes_that_see_other_files_are_told(tmp_path, monkeypatch):
  told(monkeypatch, 0, 1)
  state = {'kernel': np.ones(3, np.float32)}
  with pytest.raises(CheckpointError, match='not all processes see the same files') as caught:
    Checkpoints(tmp_path).restore(state)
  assert str(tmp_path) in str(caught.value)
  with Checkpoints(tmp_path) as checkpoints:
    with pytest.raises(CheckpointError, match='same files'):
      checkpoints.save(1, state, meta={})
    answers = iter([0, 0, 1])  # of the step, of process 0's attempt, of the directory
    monkeypatch.setattr(checkpoint, 'tell_all', lambda n: [n, n + next(answers)])
    with pytest.raises(CheckpointError, match='not all processes see the same files') as caught:
      checkpoints.save(1, state, meta={})
  assert 'free space' not in str(caught.value)
  assert not list(tmp_path.iterdir())


def test_a_save_that_failed_elsewhere_is_an_error_here(tmp_path, monkeypatch):
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(1, {'kernel': np.ones(3, np.float32)}, meta={})
    told(monkeypatch, 1)
    with pytest.raises(CheckpointError, match='another process could not save its part'):
      checkpoints.wait()
    assert checkpoints.verified(1)


def test_what_ended_the_block_here_does_not_wait_for_others(tmp_path, monkeypatch):
  checkpoints = Checkpoints(tmp_path)
  checkpoints.save(1, {'kernel': np.ones(3, np.float32)}, meta={})
  monkeypatch.setattr(checkpoint, 'tell_all', lambda _: pytest.fail('it waits'))
  with pytest.raises(KeyboardInterrupt), checkpoints:
    raise KeyboardInterrupt
  assert Checkpoints(tmp_path).verified(1)
