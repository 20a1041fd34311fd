"""The rows for a GPU: jattn and PyTorch, each in a process of its own, take turns."""

import concurrent.futures
import contextlib
import dataclasses
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.errors import ConfigError, RunError
from experiments.speed import clock, starts
from experiments.speed.worker import ROOT, Worker

# JAX takes three quarters of the memory otherwise, and PyTorch shares the card.
ENVIRONMENT = {'XLA_PYTHON_CLIENT_PREALLOCATE': 'false'}
# A dense map above so many bytes is not tried.
_DENSE_BYTES = 2**32


@dataclasses.dataclass(frozen=True)
class Sizes:
  """What is measured; the fields are smaller in the tests."""

  models: tuple[tuple[str, int], ...] = (('seed_classifier', 32), ('resnet18', 128))
  batches: tuple[int, ...] = (512, 2048)
  positions: tuple[int, ...] = (64, 256, 1024, 4096, 16384)
  equal: tuple[tuple[int, int, int], ...] = ((16, 64, 64), (8, 128, 128))
  unequal: tuple[tuple[int, int, int], ...] = ((1, 8, 64), (1, 16, 128), (1, 32, 256))
  tokens: int = 16384
  utilisation: Mapping[str, Any] = dataclasses.field(
    default_factory=lambda: {'model': 'resnet50', 'where': 'stage_2', 'batch': 256, 'size': 224}
  )
  idle: Mapping[str, Any] = dataclasses.field(default_factory=lambda: {'batch': 512, 'steps': 160})
  sprint: tuple[str, ...] = ()
  sprint_runs: int = 30


@dataclasses.dataclass(frozen=True)
class Suite:
  """The rows on these sizes.

  Attributes:
    data: .npz file of CIFAR-10, of arrays or of JPEGs (``experiments.cifar_file``); None leaves the
      sprint out, and what needs some images draws them.
    airbench: file airbench94_muon.py of github.com/KellerJordan/cifar10-airbench.
    seconds: after which no further round of a shape begins.
  """

  sizes: Sizes = Sizes()
  data: pathlib.Path | None = None
  airbench: pathlib.Path | None = None
  seconds: float = 20.0

  def training(self, rounds: int) -> dict[str, Any]:
    """G1: a training step in bfloat16, beside torch.compile of the whole loss, channels last."""
    shapes = []
    for model, size in self.sizes.models:
      with self._pair() as (ours, theirs):
        counts = [w.ask(do='measure', part='parameters', model=model) for w in (ours, theirs)]
        if counts[0] != counts[1]:
          raise RunError(f'{model}: {counts[0]} in jattn, {counts[1]} in PyTorch')
        for batch in self.sizes.batches:
          step = {'part': 'train', 'model': model, 'batch': batch, 'size': size}
          name = f'{model} {batch}'
          found = self._turns(
            rounds, {'jattn': (ours, name, step)}, {'torch': (theirs, name, step)}
          )
          shapes.append({'model': model, 'batch': batch, 'size': size, **found})
    return {'id': 'G1', 'ratio': min(shape['ratio'] for shape in shapes), 'shapes': shapes}

  def equal_heads(self, rounds: int) -> dict[str, Any]:
    """G2: attention, bfloat16, forward and backward, beside the best of PyTorch's backends."""
    return self._attention('G2', self.sizes.equal, rounds)

  def unequal_heads(self, rounds: int) -> dict[str, Any]:
    """G3: the same with d_k = C / 8, d_v = C."""
    return self._attention('G3', self.sizes.unequal, rounds)

  def _attention(
    self, row: str, heads: Sequence[tuple[int, int, int]], rounds: int
  ) -> dict[str, Any]:
    shapes = []
    with self._pair() as (ours, theirs):
      for count, width, value_width in heads:
        for positions in self.sizes.positions:
          batch = max(1, self.sizes.tokens // positions)
          shape = {'batch': batch, 'positions': positions, 'heads': count}
          shape['widths'] = [width, value_width]
          step = {'part': 'attention', **shape}
          key = f'{count} {width} {positions}'
          names = ['dense', 'chunked', 'cudnn', 'pallas']
          if 4 * batch * count * positions**2 > _DENSE_BYTES:
            names.remove('dense')
          mine = {'jattn': (ours, key, {**step, 'implementation': None})} | {
            f'jattn {name}': (ours, f'{key} {name}', {**step, 'implementation': name})
            for name in names
          }
          others = {
            f'torch {name}': (theirs, f'{key} {name}', {**step, 'backend': name})
            for name in ('flash', 'efficient', 'cudnn', 'math')
          }
          shapes.append({**shape, **self._turns(rounds, mine, others)})
    return {
      'id': row,
      'ratio': clock.geometric_mean([shape['ratio'] for shape in shapes]),
      'ratio_of_best': clock.geometric_mean([shape['ratio_of_best'] for shape in shapes]),
      'shapes': shapes,
    }

  def utilisation(self, rounds: int) -> dict[str, Any]:
    """G4: operations the model needs over the card's own rate of matrix products."""
    with Worker('jattn', ENVIRONMENT) as ours:
      found = ours.ask(do='measure', part='utilisation', rounds=rounds, **self.sizes.utilisation)
    return {'id': 'G4', **found}

  def idle(self, rounds: int) -> dict[str, Any]:
    """G5: share of the time of ``fit`` in which the device has nothing to do."""
    del rounds
    with tempfile.TemporaryDirectory() as folder, Worker('jattn', ENVIRONMENT) as ours:
      data = _draw_images(pathlib.Path(folder) / 'images.npz', 20_000)
      return {'id': 'G5', **ours.ask(do='measure', part='idle', data=data, **self.sizes.idle)}

  def sprint(self, rounds: int) -> dict[str, Any]:
    """G6: seconds to 94% on CIFAR-10 over those of airbench94 on the same bytes, means of runs."""
    del rounds
    if self.data is None:
      raise ConfigError('--data: the sprint needs a file of CIFAR-10, see experiments.cifar_file')
    if self.airbench is None:
      raise ConfigError('--airbench: the sprint needs airbench94_muon.py to compare with')
    runs = str(self.sizes.sprint_runs)
    with tempfile.TemporaryDirectory() as folder:
      from experiments.cifar_file import as_arrays

      data = as_arrays(self.data, pathlib.Path(folder) / 'arrays.npz')
      common = ('--data', f'npz:{data}', '--runs', runs, *self.sizes.sprint)
      found = {
        pool: _last_line('experiments.cifar_sprint', *common, '--pool', pool)
        for pool in ('max', 'weighted_average')
      }
      peer = _last_line(
        'experiments.speed.sprint_peer', str(self.airbench), '--data', str(data), '--runs', runs
      )
    kept = ('accuracy', 'seconds', 'accuracies', 'all_seconds')
    return {
      'id': 'G6',
      'ratio': found['max']['seconds'] / peer['seconds'],
      'accuracy': found['max']['accuracy'],
      'sprints': {name: {key: line[key] for key in kept} for name, line in found.items()},
      'airbench': peer,
    }

  def first_step(self, rounds: int) -> dict[str, Any]:
    """G7: seconds from the command to its first step, nothing compiled before, and again."""
    with tempfile.TemporaryDirectory() as folder:
      data = _draw_images(pathlib.Path(folder) / 'images.npz', 5_000)
      found = starts.first_step(min(rounds, 2), '--data', data, '--precision', 'bfloat16')
    return found | {'id': 'G7'}

  @contextlib.contextmanager
  def _pair(self) -> Iterator[tuple[Worker, Worker]]:
    with Worker('jattn', ENVIRONMENT) as ours, Worker('torch') as theirs:
      yield ours, theirs

  def _turns(
    self, rounds: int, mine: Mapping[str, tuple], others: Mapping[str, tuple]
  ) -> dict[str, Any]:
    """Prepares what can run, lets it take turns, and says what could not."""
    everything = {**mine, **others}
    by_worker: dict[Worker, dict[str, Any]] = {}
    for worker, key, step in everything.values():
      by_worker.setdefault(worker, {})[key] = step
    with concurrent.futures.ThreadPoolExecutor() as pool:
      asked = {w: pool.submit(w.ask, do='prepare', steps=steps) for w, steps in by_worker.items()}
      why = {worker: future.result() for worker, future in asked.items()}
    missing = {
      name: why[worker][key] for name, (worker, key, _) in everything.items() if why[worker][key]
    }
    running = {name: entry for name, entry in everything.items() if name not in missing}
    for side, kind in ((mine, 'jattn'), (others, 'PyTorch')):
      if not set(side) & set(running):
        raise RunError(f'{kind}: {next(iter(missing.values()))}')
    times: dict[str, list[float]] = {name: [] for name in running}
    begun = time.perf_counter()
    for index in range(rounds):
      if index >= 3 and time.perf_counter() - begun > self.seconds:
        break
      for name, (worker, key, _) in running.items():
        times[name].append(worker.ask(do='turn', name=key))
    found = clock.summary(times)
    ms = found['median_ms']
    best = min(ms[name] for name in others if name in ms)
    return {
      'ratio': best / ms['jattn'] if 'jattn' in ms else 0.0,
      'ratio_of_best': best / min(ms[name] for name in mine if name in ms),
      **found,
      'missing': missing,
    }


def describe() -> dict[str, Any]:
  """The machine as jattn's process sees it, with PyTorch's version where it is installed."""
  with Worker('jattn', ENVIRONMENT) as ours:
    facts = ours.ask(do='describe')
  try:
    with Worker('torch') as theirs:
      facts['versions']['torch'] = theirs.ask(do='describe')['versions']['torch']
  except RunError:
    facts['versions']['torch'] = None
  return facts


def _draw_images(file: pathlib.Path, size: int) -> str:
  """The name of a data set of noise."""
  import numpy as np

  rng = np.random.default_rng(0)
  arrays = {}
  for split, count in (('train', size), ('test', 500)):
    arrays[f'x_{split}'] = rng.integers(0, 256, (count, 32, 32, 3), np.uint8)
    arrays[f'y_{split}'] = np.arange(count) % 10
  np.savez(file, **arrays)
  return f'npz:{file}'


def _last_line(module: str, *arguments: str) -> dict[str, Any]:
  """Runs a command whose last line is its result."""
  done = subprocess.run(
    [sys.executable, '-m', module, *arguments],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RunError(f'{module} ended with {done.returncode}')
  return json.loads(done.stdout.strip().splitlines()[-1])
