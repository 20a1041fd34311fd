"""Checkpoints that can be believed: Orbax writes them, a sha256 manifest vouches for them.

Orbax is asynchronous and knows shardings, but it restores a flipped bit as if nothing were wrong,
takes an empty directory for the newest step, casts dtypes silently and lets a NaN metric displace
the best step. Here a step `<directory>/<step>` appears by one rename, complete and with its
manifest, and is read only if it verifies.

  <directory>/<step>              a checkpoint: state/ (arrays), meta/ (JSON), manifest.sha256
  <directory>/.saving/            where Orbax writes; what a crash leaves goes at the next save
  <directory>/<step>.damaged-<n>  a step that did not verify, when the same step was saved again
  <directory>/<step>.deleted      an old checkpoint whose deletion was interrupted
"""

import contextlib
import dataclasses
import json
import logging
import math
import operator
import os
import re
import shutil
import threading
import traceback
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jattn.training import manifest
from jattn.training.checkpoint_errors import (
  CheckpointError,
  CheckpointWarning,
  none_verifies,
  not_saved,
  one_line,
  unreadable,
)
from jattn.training.leaves import abstract, describe, differences
from jattn.training.processes import tell_all

_STEP = re.compile(r'0|[1-9][0-9]*')
_SAVING = '.saving'
_DELETED = '.deleted'
_ORBAX = os.path.join('', 'orbax', 'checkpoint', '')


@dataclasses.dataclass(frozen=True)
class Restored:
  """A checkpoint as read: its state and meta, its step, and the newer steps that did not verify."""

  state: Any
  meta: dict[str, Any]
  step: int
  passed_over: tuple[int, ...] = ()


class Checkpoints:
  """The checkpoints of one run in one directory; one writer at a time, any number of readers.

  Guaranteed: a step is there whole or not at all, whenever the process dies; what is restored is
  bit by bit what was saved; a checkpoint that does not verify is never used and never deleted. Of
  those that verify, the newest `keep` stay, and the one whose metric `best` is best (the newest
  among equals). Nothing is created, moved or deleted before the first `save`, so a read-only copy
  can be restored.

  Several processes share one directory on a file system that all of them see; each calls `save`,
  `restore`, `wait` and `close` at the same place. Each writes its own part of the arrays, process 0
  the manifest, and it alone renames and deletes. If one fails or sees other files, all raise.
  """

  def __init__(
    self, directory: str | os.PathLike, *, keep: int = 3, best: str | None = None, mode: str = 'max'
  ):
    """Names the directory, which need not exist; ValueError for `keep` < 1 or an unknown mode."""
    if keep < 1:
      raise ValueError(f'{keep=} must be at least 1')
    if mode not in ('max', 'min'):
      raise ValueError(f"{mode=} must be 'max' or 'min'")
    self.directory = Path(directory).resolve()
    self.keep = keep
    self.best = best
    self.mode = mode
    self._saving = self.directory / _SAVING
    self._attempt = 0
    self._manager = None
    self._thread = None
    self._error = None
    self._scores: dict[int, float | None] = {}  # steps that this process has seen verify
    self._damaged: set[int] = set()  # and those it has seen fail

  def save(self, step: int, state: Any, *, meta: dict, metrics: Mapping | None = None) -> None:
    """Saves `state` (a pytree of arrays) and `meta` (JSON) as `step`, in the background.

    On return the arrays have been copied, so they may be donated. A step that is there and verifies
    is left as it is; one that does not verify is renamed to `<step>.damaged-<n>` when the new one
    is complete. `metrics` are numbers; one that is not finite is stored as null and never counts as
    best, and with `metrics=None` this step is no candidate for best.

    Raises CheckpointError if this save cannot start or an earlier one failed in the background
    (then this one was not started; older checkpoints are as they were). Raises ValueError for a
    negative step, for meta that JSON would not give back equal, for metrics without `best`, for a
    leaf that is neither an array nor a number, or of size zero.
    """
    step = _step_number(step)
    leaves = describe(state)
    metrics = self._check_metrics(metrics)
    record = {'meta': _check_meta(meta), 'metrics': metrics, 'leaves': leaves}
    self.wait()
    if self._same_for_all(int(self.verified(step))):
      return
    try:
      manager = self._open()
      args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(record))
      manager.save(step, args=args, force=True)
    except CheckpointError:  # it says what to do
      self._discard()
      raise
    except Exception as error:
      self._discard()
      raise not_saved(self.directory, step, error) from error
    self._thread = threading.Thread(
      target=self._finish, args=(step, self._score(metrics)), name='checkpoint'
    )
    self._thread.start()

  def restore(self, target: Any, *, step: int | None = None) -> Restored | None:
    """Reads `step`, or the newest step that verifies, into the structure and shardings of `target`.

    `target` is a pytree of arrays or jax.ShapeDtypeStruct; every array comes back committed to the
    target's sharding (the first local device where it names none), whatever number of devices saved
    it. None if the directory holds no checkpoint. Each newer step that does not verify is named
    with the reason in a CheckpointWarning, and stays where it is.

    Raises CheckpointError if there are checkpoints and none verifies, if `step` is missing or does
    not verify, and if a leaf's path, shape or dtype differs from the target's (nothing is cast).
    """
    self.wait()
    if step is not None:
      step = _step_number(step)
      reason = self.fault(step)
      if self._same_for_all(int(reason is None)):
        return self._read(step, target, ())
      there = ', '.join(map(str, self.steps())) or 'none'
      raise CheckpointError(
        f'{self.directory / str(step)}: this checkpoint cannot be used: {reason}.\n'
        f'Steps in {self.directory}: {there}.'
      )
    newest, passed_over = self._newest()
    newest = self._same_for_all(newest)
    if newest < 0 and passed_over:
      raise CheckpointError(none_verifies(self.directory, passed_over))
    if newest < 0:
      return None
    for skipped, why in passed_over.items():
      warnings.warn(
        f'{self.directory / str(skipped)}: passed over: {why}; using step {newest} instead.',
        CheckpointWarning,
        stacklevel=2,
      )
    return self._read(newest, target, tuple(passed_over))

  def steps(self) -> list[int]:
    """The steps that have a directory, sorted, whether they verify or not."""
    if not self.directory.is_dir():
      return []
    with os.scandir(self.directory) as entries:
      return sorted(int(e.name) for e in entries if _STEP.fullmatch(e.name) and e.is_dir())

  def fault(self, step: int) -> str | None:
    """Why the checkpoint of `step` cannot be used, in one line, or None; every file is read."""
    return manifest.fault(self.directory / str(_step_number(step)))

  def verified(self, step: int) -> bool:
    """Whether the checkpoint of `step` is bit by bit what was saved; every file is read."""
    return self.fault(step) is None

  def best_step(self) -> int | None:
    """The step that verifies and has the best finite metric `best`; None if there is none.

    Raises CheckpointError if a save failed in the background.
    """
    self.wait()
    good = [step for step in self.steps() if self.verified(step)]
    return self._best({step: self._stored_score(step) for step in good})

  def wait(self) -> None:
    """Returns when no save is under way; raises CheckpointError, once, if it failed."""
    under_way = self._join()
    error, self._error = self._error, None
    failed = under_way and any(tell_all(int(error is not None)))
    if error is not None:
      raise error
    if failed:
      raise CheckpointError(f'{self.directory}: another process could not save its part.')

  def close(self) -> None:
    """Waits and frees the threads; raises CheckpointError if the last save failed."""
    try:
      self.wait()
    finally:
      self._close_manager()

  def __enter__(self) -> 'Checkpoints':
    return self

  def __exit__(self, kind, value, trace) -> None:
    try:
      if kind is None:
        self.close()
        return
      # What ended the block may have ended it in this process alone: it must not wait for others.
      self._join()
      self._close_manager()
      if self._error is not None:
        raise self._error
    except CheckpointError as error:
      if kind is None:
        raise
      # Whatever ended the block (SystemExit with its code, say) must not be replaced.
      warnings.warn(str(error), CheckpointWarning, stacklevel=2)

  # Writing. `_finish` runs in the thread; the caller's thread touches nothing before it has joined
  # it.

  def _finish(self, step: int, score: float | None) -> None:
    try:
      self._manager.wait_until_finished()
      if jax.process_index() == 0:
        self._publish(step)
    except Exception as error:
      self._discard()
      self._error = not_saved(self.directory, step, error)
      return
    try:
      self._damaged.discard(step)
      self._scores[step] = score
      if jax.process_index() == 0:
        self._retire(step)
    except Exception as error:
      self._error = CheckpointError(
        f'{self.directory}: step {step} is saved, but an old checkpoint could not be deleted: '
        f'{one_line(error)}'
      )
      self._error.__cause__ = error

  def _join(self) -> bool:
    """Whether a save was under way; it has ended."""
    thread, self._thread = self._thread, None
    if thread is not None:
      thread.join()
    return thread is not None

  def _publish(self, step: int) -> None:
    staged, final = self._saving / str(self._attempt) / str(step), self.directory / str(step)
    manifest.write(staged)
    if os.path.lexists(final):
      n = 0
      while os.path.lexists(aside := final.with_name(f'{step}.damaged-{n}')):
        n += 1
      os.rename(final, aside)
    os.rename(staged, final)
    manifest.sync_directory(self.directory)

  def _retire(self, saved: int) -> None:
    """Deletes the checkpoints that are neither among the newest nor the best nor just saved."""
    steps = self.steps()
    for step in steps:
      if step not in self._scores and step not in self._damaged:
        if self.verified(step):
          self._scores[step] = self._stored_score(step)
        else:
          self._damaged.add(step)
    good = {step: self._scores[step] for step in steps if step in self._scores}
    kept = {saved, self._best(good), *sorted(good)[-self.keep :]}
    for step in good.keys() - kept:
      # Read once more: what has rotted since it was saved may be all that is left to learn from.
      if self.verified(step):
        _remove(self.directory / str(step))
      else:
        self._damaged.add(step)
      self._scores.pop(step)

  def _open(self) -> ocp.CheckpointManager:
    if self._manager is None:
      self._make_saving()
      options = ocp.CheckpointManagerOptions(
        lightweight_initialize=True,
        # Made in the background, directories that never come (the save failed at its start) are
        # waited for by threads that keep the process from ending for 20 minutes.
        async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
      )
      # A new place each time: threads of a save that failed may still be writing to the last.
      self._attempt += 1
      self._manager = ocp.CheckpointManager(self._saving / str(self._attempt), options=options)
    # The last step has left Orbax's directory since; its list of steps must not remember it.
    self._manager.reload()
    return self._manager

  def _make_saving(self) -> None:
    error: OSError | None = None
    if jax.process_index() == 0:
      try:
        self._sweep()
        self._saving.mkdir(parents=True, exist_ok=True)
      except OSError as caught:
        error = caught
    tell_all(0)  # process 0 has tried
    made = self._same_for_all(int(self._saving.is_dir()))
    if error is not None or not made:
      raise error or OSError('process 0 could not make the directory')

  def _sweep(self) -> None:
    """Removes what saves and deletions that never ended have left; only names that are ours."""
    shutil.rmtree(self._saving, ignore_errors=True)
    if self.directory.is_dir():
      for path in self.directory.iterdir():
        if path.name.endswith(_DELETED) and _STEP.fullmatch(path.name.removesuffix(_DELETED)):
          shutil.rmtree(path, ignore_errors=True)

  def _discard(self) -> None:
    """Forgets a manager whose save failed: it would raise the error again and list the step."""
    self._close_manager()
    if jax.process_index() == 0:
      shutil.rmtree(self._saving, ignore_errors=True)

  def _close_manager(self) -> None:
    manager, self._manager = self._manager, None
    if manager is None:
      return
    # close() raises a failed save's error once and stops there; the second call does the closing.
    for _ in range(2):
      with contextlib.suppress(Exception):
        manager.close()
        break
    if jax.process_index() == 0:
      with contextlib.suppress(OSError):
        (self._saving / str(self._attempt)).rmdir()
        self._saving.rmdir()

  # Reading.

  def _read(self, step: int, target: Any, passed_over: tuple[int, ...]) -> Restored:
    path = self.directory / str(step)
    record = self._record(step)
    if different := differences(record['leaves'], describe(target)):
      more = len(different) - 2
      raise CheckpointError(
        '\n'.join(
          [
            f'{path}: this checkpoint does not fit the state it is to be restored into:',
            *different[:2],
            *([f'  and {more} more'] if more > 0 else []),
            'Restore with the model, optimizer and precision that made it, or use a new directory.',
          ]
        )
      )
    args = ocp.args.StandardRestore(jax.tree.map(abstract, target))
    state = self._load(step, ocp.args.Composite(state=args)).state
    return Restored(state=state, meta=record['meta'], step=step, passed_over=passed_over)

  def _record(self, step: int) -> dict[str, Any]:
    path = self.directory / str(step)
    try:  # without a Checkpointer, in which all processes wait for each other: 0 asks alone
      with contextlib.closing(ocp.JsonCheckpointHandler()) as reader:
        record = reader.restore(path / 'meta')
    except Exception as error:
      raise unreadable(path, error) from error
    if not isinstance(record, dict) or record.keys() != {'meta', 'metrics', 'leaves'}:
      raise CheckpointError(f'{path}: not a checkpoint of jattn: meta/ has no record.')
    return record

  def _load(self, step: int, args: ocp.args.Composite) -> ocp.args.Composite:
    path = self.directory / str(step)
    try:
      with contextlib.closing(ocp.Checkpointer(ocp.CompositeCheckpointHandler())) as reader:
        return reader.restore(path, args=args)
    except Exception as error:
      raise unreadable(path, error) from error

  # Choosing.

  def _newest(self) -> tuple[int, dict[int, str]]:
    """The newest step that verifies, or -1, and why the newer ones do not."""
    passed_over = {}
    for candidate in reversed(self.steps()):
      reason = self.fault(candidate)
      if reason is None:
        return candidate, passed_over
      passed_over[candidate] = reason
    return -1, passed_over

  def _same_for_all(self, number: int) -> int:
    """The number, if every process has found the same."""
    if len(set(tell_all(number))) > 1:
      raise CheckpointError(
        f'{self.directory}: not all processes see the same files.\n'
        'Use a directory on a file system that all of them share.'
      )
    return number

  def _check_metrics(self, metrics: Mapping | None) -> dict[str, float | None]:
    if metrics is None:
      return {}
    if self.best is not None and self.best not in metrics:
      raise ValueError(f'best={self.best!r} is not among the metrics {sorted(metrics)}')
    values = {str(name): float(value) for name, value in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}

  def _score(self, metrics: dict[str, float | None]) -> float | None:
    return None if self.best is None else metrics.get(self.best)

  def _stored_score(self, step: int) -> float | None:
    try:
      return self._score(self._record(step)['metrics'])
    except CheckpointError:
      return None  # Not ours, or another version of Orbax: no reason to stop saving.

  def _best(self, scores: dict[int, float | None]) -> int | None:
    sign = 1 if self.mode == 'max' else -1
    ranked = [(sign * score, step) for step, score in scores.items() if score is not None]
    return max(ranked)[1] if ranked else None


def _step_number(step: int) -> int:
  step = operator.index(step)
  if step < 0:
    raise ValueError(f'{step=} must not be negative')
  return step


def _check_meta(meta: dict) -> dict:
  try:
    same = json.loads(json.dumps(meta, allow_nan=False)) == meta
  except (TypeError, ValueError) as error:
    raise ValueError(f'meta must be JSON with finite numbers: {error}') from error
  if not same or not isinstance(meta, dict):
    raise ValueError(
      'meta must be a dict that JSON gives back equal: lists, not tuples; keys that are strings'
    )
  return meta


def _remove(path: Path) -> None:
  # Renamed first: killed half-way, it must not look like a damaged checkpoint.
  doomed = path.with_name(path.name + _DELETED)
  if doomed.exists():
    shutil.rmtree(doomed)
  os.rename(path, doomed)
  shutil.rmtree(doomed)


def _not_orbax_chatter(record: logging.LogRecord) -> bool:
  # A failed save is logged by Orbax three times with its traceback and once more by asyncio, and
  # raised by us once. What is below a warning is only logged where the user has asked for it.
  frames = traceback.walk_tb(record.exc_info[2]) if record.exc_info else ()
  files = [record.pathname, *(frame.f_code.co_filename for frame, _ in frames)]
  return record.levelno < logging.WARNING or not any(_ORBAX in file for file in files)


for _name in ('absl', 'asyncio'):
  logging.getLogger(_name).addFilter(_not_orbax_chatter)
