"""The loop: its steps, its means, its stops; and evaluation that counts every row once."""

import signal
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import training
from jattn.training import loop
from jattn.training.step import make_eval_step
from tests.training.conftest import CLASSES, Tiny, Trainer, make_batch, stream
from tests.training.test_step import poisoned


def fit(trainer, state, batches=None, **settings):
  batches = stream(int(state.step)) if batches is None else batches
  return training.fit(state, trainer.step, batches, mesh=trainer.mesh, **settings)


def test_fit_equals_the_bare_step_and_logs_its_means(trainer):
  lines = []
  fitted = fit(
    trainer, trainer.state(), steps=7, log_every=3, on_log=lambda step, m: lines.append((step, m))
  )
  state, metrics = trainer.run(trainer.state(), 7)
  chex.assert_trees_all_equal(jax.device_get(fitted.state), jax.device_get(state))
  assert fitted.reason == 'done'
  assert [step for step, _ in lines] == [3, 6, 7]
  loss = sum(m.loss for m in metrics[3:6]) / sum(m.count for m in metrics[3:6])
  assert lines[1][1]['loss'] == pytest.approx(float(loss))
  correct = sum(m.correct for m in metrics[3:6]) / 48
  assert lines[1][1]['accuracy'] == pytest.approx(float(correct))


def test_images_per_second_counts_what_the_seconds_were_spent_on(monkeypatch):
  """Neither on compiling nor on what was done before anybody looked; none where none is known."""
  now = 0.0
  monkeypatch.setattr(loop, 'time', types.SimpleNamespace(perf_counter=lambda: now))
  metrics = training.StepMetrics(*(jnp.asarray(number) for number in (8, 4.0, 5, 1.0, 0, 0)))
  rates = []
  log = loop._Log(lambda _, m: rates.append(m.get('images_per_second')), every=1, max_skips=3)
  now = 5.0  # of compiling
  log.add(1, metrics)
  now = 7.0
  log.add(2, metrics)
  now = 9.0
  log.add(3, metrics)
  log.restart_clock()
  monkeypatch.setattr(jax, 'process_count', lambda: 2)  # read later, and all at once
  log.add(4, metrics)
  now = 10.0
  log.finish()
  again = loop._Log(lambda _, m: rates.append(m.get('images_per_second')), every=1, max_skips=3)
  again.add(1, metrics)
  again.add(2, metrics)
  again.finish()
  assert rates == [None, 4.0, 4.0, 8.0, None, None]


def test_nothing_is_traced_twice():
  module = Tiny(dropout=0.2)
  trainer = Trainer(module=module)
  apply = chex.assert_max_traces(lambda *x, **settings: module.apply(*x, **settings), n=1)
  step = training.make_train_step(apply, trainer.optimizer, trainer.mesh, num_classes=CLASSES)
  training.fit(trainer.state(), step, stream(), steps=5, mesh=trainer.mesh)
  assert step._cache_size() == 1


def test_saves_and_evaluations_fall_where_they_are_due_and_at_the_end(trainer):
  for steps in (7, 6):
    done = []
    fit(
      trainer,
      trainer.state(),
      steps=steps,
      log_every=4,
      on_log=lambda step, metrics: done.append(('logged', step)),  # noqa: B023
      save=lambda step, state: done.append(('saved', int(state.step))),  # noqa: B023
      save_every=3,
      evaluate=lambda step, state: done.append(('evaluated', step)),  # noqa: B023
      evaluate_every=2,
    )
    assert [step for what, step in done if what == 'saved'] == sorted({3, 6, steps})
    assert [step for what, step in done if what == 'evaluated'] == sorted({2, 4, 6, steps})
    assert done[-3:] == [('logged', steps), ('evaluated', steps), ('saved', steps)]


def test_going_on_from_a_step_equals_never_having_stopped(trainer):
  whole = fit(trainer, trainer.state(), steps=6).state
  half = fit(trainer, trainer.state(), steps=4).state
  rest = fit(trainer, half, steps=6).state
  chex.assert_trees_all_equal(jax.device_get(whole), jax.device_get(rest))


def test_several_steps_a_call_with_a_shorter_last_call(trainer):
  lines = []
  fitted = fit(
    trainer,
    trainer.state(),
    steps=5,
    steps_per_call=2,
    log_every=4,
    on_log=lambda step, m: lines.append(step),
  )
  single, _ = trainer.run(trainer.state(), 5)
  chex.assert_trees_all_close(
    jax.device_get(fitted.state.params), jax.device_get(single.params), atol=1e-6
  )
  assert lines == [4, 5]


def test_being_asked_to_stop_saves_and_leaves(trainer):
  saved, asked = [], iter([False, False, True])
  fitted = fit(
    trainer,
    trainer.state(),
    steps=50,
    should_stop=lambda: next(asked),
    save=lambda step, state: saved.append(step),
  )
  assert (fitted.reason, int(fitted.state.step), saved) == ('stopped', 2, [2])


def test_divergence_ends_the_run_and_is_not_saved():
  trainer = Trainer(max_skips=3)
  saved = []

  def batches():
    yield from (make_batch(step) for step in range(4))
    while True:
      yield poisoned(0)

  good, _ = trainer.run(trainer.state(), 4)
  fitted = fit(
    trainer,
    trainer.state(),
    batches(),
    steps=200,
    save=lambda step, state: saved.append(step),
    save_every=2,
  )
  assert fitted.reason == 'diverged'
  assert int(fitted.state.step) < 40
  assert saved in ([2, 4], [2, 4, 6])
  chex.assert_trees_all_equal(jax.device_get(fitted.state.params), jax.device_get(good.params))


def test_evaluation_counts_every_row_once_on_eight_devices():
  trainer = Trainer(devices=8)
  state, _ = trainer.run(trainer.state(), 3)
  eval_step = make_eval_step(trainer.module.apply)
  full = make_batch(0, size=40)
  rows = np.arange(48)
  images = np.concatenate([full.images, np.full((8, 6, 6, 3), 255, np.uint8)])
  labels = np.concatenate([full.labels, np.zeros(8, np.int32)])
  padded = full.replace(images=images, labels=labels, mask=rows < 40)
  halves = [jax.tree.map(lambda x, i=i: x[i : i + 16], padded) for i in (0, 16, 32)]
  metrics = training.evaluate(
    eval_step, state.variables, halves, num_classes=CLASSES, mesh=trainer.mesh
  )
  logits = trainer.module.apply(
    jax.device_get(state.variables), full.images.astype(np.float32) / 255, train=False
  )
  assert metrics.result()['count'] == 40
  accuracy = (np.asarray(logits).argmax(-1) == full.labels).mean()
  assert metrics.result()['accuracy'] == pytest.approx(accuracy)


def test_a_signal_is_a_request_and_handlers_come_back():
  before = signal.getsignal(signal.SIGTERM)
  with training.Preemption() as preemption:
    assert not preemption.should_stop()
    signal.raise_signal(signal.SIGTERM)
    assert preemption.should_stop()
    assert preemption.requested == 'SIGTERM'
    with pytest.raises(KeyboardInterrupt):
      signal.raise_signal(signal.SIGINT)
  assert signal.getsignal(signal.SIGTERM) == before
