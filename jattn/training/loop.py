"""The training loop and the evaluation loop."""

import collections
import functools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import flax.struct
import jax
import numpy as np
from jax.sharding import Mesh

from jattn.training.mesh import place_batch, replicated
from jattn.training.metrics import Metrics
from jattn.training.state import TrainState, Variables
from jattn.training.step import StepMetrics
from jattn.types import Batch

Reason = Literal['done', 'stopped', 'diverged']


@flax.struct.dataclass
class Fitted:
  """How ``fit`` ended: the last state, and ``done``, ``stopped`` (asked to) or ``diverged``."""

  state: TrainState
  reason: Reason = flax.struct.field(pytree_node=False)


def fit(
  state: TrainState,
  train_step: Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]],
  batches: Iterator[Batch],
  *,
  steps: int,
  mesh: Mesh,
  steps_per_call: int = 1,
  max_skips: int = 3,
  on_log: Callable[[int, dict[str, float]], None] | None = None,
  log_every: int = 50,
  evaluate: Callable[[int, TrainState], None] | None = None,
  evaluate_every: int | None = None,
  save: Callable[[int, TrainState], None] | None = None,
  save_every: int | None = None,
  should_stop: Callable[[], bool] = lambda: False,
) -> Fitted:
  """Trains until step ``steps``, never waiting for the device to log.

  Metrics are read as they become ready, some steps late; the device always has the next call
  queued.

  Args:
    state: where to begin; its ``step`` counts. It is donated.
    train_step: as ``make_train_step`` gives it.
    batches: host batches, beginning with that of ``state.step``.
    steps: the step to end at.
    mesh: where batches go.
    steps_per_call: above one, so many batches go to ``train_step`` as one stack.
    max_skips: as given to ``make_update``; so many skipped updates in a row end the run.
    on_log: called with the step and the means since the last call: ``loss``, ``accuracy``,
      ``gradient_norm`` and the number ``skipped``; and ``images_per_second`` since the last
      evaluation or save, without the compilation, once that is known.
    log_every, evaluate_every, save_every: in steps; evaluation and saving also happen at the end.
    evaluate: called with the step and the state; it may wait for the device.
    save: called with the step and the state; it must copy what it keeps before it returns.
    should_stop: asked before every call; True ends the run after a save.

  Returns:
    The last state, and why it ended. A run that diverged is not saved.
  """
  step = int(state.step)
  log = _Log(on_log, log_every, max_skips)
  reason: Reason = 'done'
  saved = evaluated = step
  while step < steps:
    if should_stop():
      reason = 'stopped'
      break
    count = min(steps_per_call, steps - step)
    batch = next(batches) if steps_per_call == 1 else _stack(batches, count)
    batch = place_batch(batch, mesh, leading=int(steps_per_call > 1))
    state, metrics = train_step(state, batch)
    before, step = step, step + count
    log.add(step, metrics)
    if log.diverged or step == steps:
      break
    evaluating = evaluate is not None and _due(before, step, evaluate_every)
    saving = save is not None and _due(before, step, save_every)
    if evaluating or saving:
      log.finish()
      if log.diverged:
        break
    if evaluating:
      evaluate(step, state)
      evaluated = step
    if saving:
      save(step, state)
      saved = step
    if evaluating or saving:
      log.restart_clock()
  log.finish()
  log.emit(step)
  if log.diverged:
    return Fitted(state, 'diverged')
  if evaluate is not None and evaluated != step and reason == 'done':
    evaluate(step, state)
  if save is not None and saved != step:
    save(step, state)
  return Fitted(state, reason)


def evaluate(
  eval_step: Callable[[Variables, Batch, Metrics], Metrics],
  variables: Variables,
  batches: Iterable[Batch],
  *,
  num_classes: int,
  mesh: Mesh,
) -> Metrics:
  """Sums the metrics of every batch; each unmasked row counts once."""
  metrics = _zeros(num_classes, mesh)
  for batch in batches:
    metrics = eval_step(variables, place_batch(batch, mesh), metrics)
  return jax.device_get(metrics)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _zeros(num_classes: int, mesh: Mesh) -> Metrics:
  """On every device; ``device_put`` would have several processes compare them first."""
  metrics = Metrics.zeros(num_classes)
  return jax.lax.with_sharding_constraint(
    metrics, jax.tree.map(lambda _: replicated(mesh), metrics)
  )


class _Log:
  """Reads metrics when they are ready and hands on their means."""

  # How far the host may run ahead: enough to hide it, little enough to notice divergence soon.
  AHEAD = 16

  def __init__(self, on_log: Callable | None, every: int, max_skips: int):
    self._on_log, self._every, self._max_skips = on_log, every, max_skips
    self._waiting: collections.deque[tuple[int, StepMetrics]] = collections.deque()
    self._sums = collections.Counter()
    self._compiled = False
    self.diverged = False
    self.restart_clock()

  def add(self, step: int, metrics: StepMetrics) -> None:
    self._waiting.append((step, metrics))
    while self._waiting:
      # Several processes must stop after the same step, so none may read what others have not.
      early = jax.process_count() == 1 and self._waiting[0][1].loss.is_ready()
      if len(self._waiting) <= self.AHEAD and not early:
        break
      self._read(*self._waiting.popleft())

  def finish(self) -> None:
    while self._waiting:
      self._read(*self._waiting.popleft())

  def restart_clock(self) -> None:
    """Time spent elsewhere is not training time; what is done by now took none of what comes."""
    self._clock, self._images = time.perf_counter(), 0.0
    self._done = sum(metrics.loss.is_ready() for _, metrics in self._waiting)

  def emit(self, step: int) -> None:
    """Hands on what has been read since the last time, if anything."""
    sums, self._sums = self._sums, collections.Counter()
    if self._on_log is not None and sums['steps']:
      # Several steps may be read at once, so a rate over few of them would mean nothing: this one
      # runs from the first step after the last pause.
      seconds = time.perf_counter() - self._clock
      rate = {'images_per_second': self._images / seconds} if self._images and seconds else {}
      self._on_log(step, _means(sums) | rate)

  def _read(self, step: int, metrics: StepMetrics) -> None:
    host: Any = jax.tree.map(np.atleast_1d, jax.device_get(metrics))
    self.diverged |= bool(host.skipped_in_a_row.max() >= self._max_skips)
    kept = 1 - host.skipped
    self._sums.update(
      steps=len(host.loss),
      kept=int(kept.sum()),
      count=float((host.count * kept).sum()),
      skipped=int(host.skipped.sum()),
      loss=float(np.where(kept, host.loss, 0).sum()),
      correct=float((host.correct * kept).sum()),
      gradient_norm=float(np.where(kept, host.gradient_norm, 0).sum()),
    )
    if not self._compiled:
      self._compiled = True
      self.restart_clock()
    elif self._done:
      self._done -= 1
    else:
      self._images += float(host.count.sum())
    if _due(step - len(host.loss), step, self._every):
      self.emit(step)


def _means(sums: collections.Counter) -> dict[str, float]:
  count, kept = max(sums['count'], 1), max(sums['kept'], 1)
  return {
    'loss': sums['loss'] / count,
    'accuracy': sums['correct'] / count,
    'gradient_norm': sums['gradient_norm'] / kept,
    'skipped': sums['skipped'],
  }


def _due(before: int, after: int, every: int | None) -> bool:
  """Whether a multiple of ``every`` lies in (before, after]."""
  return every is not None and before // every != after // every


def _stack(batches: Iterator[Batch], count: int) -> Batch:
  return jax.tree.map(lambda *xs: np.stack(xs), *[next(batches) for _ in range(count)])
