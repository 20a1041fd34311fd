"""How fast is jattn, beside PyTorch and beside what it is built on?

  python -m experiments.speed                 every row for a CPU, some 20 minutes
  python -m experiments.speed --only C1       one row
  python -m experiments.speed --out FILE      appends the JSON lines too
  python -m experiments.speed --suite gpu --data cifar10.npz --airbench airbench94_muon.py
                                              every row for a GPU, 8 minutes; without a GPU those
                                              for a CPU

What is compared takes turns, on a CPU in one process for each row (what one leaves in memory slows
the next down), on a GPU in one for each framework; each row is one JSON line as soon as it is
measured, ``ratio`` by the medians, with the load of the machine before and after. A ratio above 1
is in jattn's favour, except in C6, C7, G6 and G7 (times of the second run, of importing, of the
sprint: smaller is better), in G4 and G5 (shares) and in ``memory`` and ``chunked`` (bytes and time
of the dense form over those of the chunked); ``links`` is a projection. Rows C1 to C5, C8, G1 to G3
and G6 need PyTorch (``pip install 'jattn[torch]'``); without it they say so. A short table comes
last. The rows for a GPU do without TFDS.
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import tyro

from experiments.errors import ConfigError, ExperimentError, InputError, RunError, run_main
from experiments.speed.starts import ROOT


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Times jattn."""

  suite: Literal['cpu', 'gpu'] = 'cpu'
  """Which rows; 'gpu' without a GPU says so and measures those for a CPU."""
  only: tuple[str, ...] = ()
  """Rows, such as C1; none is all of the suite."""
  rounds: int = 20
  """Of each that is compared, after two to warm up."""
  data: pathlib.Path | None = None
  """CIFAR-10 as one .npz file, for G6: of arrays, or of JPEGs by experiments.cifar_file."""
  airbench: pathlib.Path | None = None
  """airbench94_muon.py of github.com/KellerJordan/cifar10-airbench, for G6."""
  minutes: float | None = None
  """After which no further row begins; None is 8 for a GPU and no end for a CPU."""
  out: pathlib.Path | None = None
  """JSON-lines file to append to; None only prints."""


@dataclasses.dataclass(frozen=True)
class Row:
  """What is measured and what is wanted.

  Attributes:
    title: for the table.
    must: the least that is wanted, in words.
    reached: whether a result reaches it.
    measure: takes the number of rounds.
  """

  title: str
  must: str
  reached: Callable[[dict[str, Any]], bool]
  measure: Callable[[int], dict[str, Any]]


def rows() -> dict[str, Row]:
  """Every row for a CPU by its name."""
  from experiments.speed import attention, links, loading, networks, starts

  def at_least(least: float) -> Callable[[dict[str, Any]], bool]:
    return lambda found: found['ratio'] >= least

  def loads_fast(found: dict[str, Any]) -> bool:
    numpy, *others = found['ratios'].values()
    return numpy >= 0.9 and min(others) >= 5

  def starts_fast(found: dict[str, Any]) -> bool:
    return found['ratio'] <= 0.35 and found['warm_s'] <= 6

  return {
    'C1': Row('seed step, float32', '>= 1.0', at_least(1), networks.seed_step),
    'C2': Row('seed step, bfloat16', '>= 0.8', at_least(0.8), networks.seed_step_bfloat16),
    'C3': Row('seed forward', '>= 1.0', at_least(1), networks.seed_forward),
    'C4': Row('attention, both ways', '>= 1.0', at_least(1), attention.against_torch),
    'C5': Row('ResNet-20 step, with SE', '>= 0.9', at_least(0.9), networks.residual_step),
    'C6': Row('second start over first', '<= 0.35, <= 6 s', starts_fast, starts.first_step),
    'C7': Row('import', '<= +150 ms', lambda found: found['more_ms'] <= 150, starts.importing),
    'C8': Row('loader', '>= 0.9, 5, 5', loads_fast, loading.loader),
    'C9': Row('fit over the bare step', '>= 0.98', at_least(0.98), _loop),
    'chunked': Row('dense / chunked, N = 1,024', '>= 0.77', at_least(1 / 1.3), attention.by_blocks),
    'memory': Row('attention, N = 16,384', '>= 20', at_least(20), lambda _: attention.memory()),
    'links': Row('all-reduce beside the step', 'report', at_least(0), links.projection),
  }


def gpu_rows(suite: Any) -> dict[str, Row]:
  """Every row for a GPU, in the order of measuring; ``suite`` is a ``gpu.Suite``."""

  def at_least(least: float) -> Callable[[dict[str, Any]], bool]:
    return lambda found: found['ratio'] >= least

  def sprints(found: dict[str, Any]) -> bool:
    return found['ratio'] <= 1.3 and found['accuracy'] >= 0.94

  def starts_fast(found: dict[str, Any]) -> bool:
    return found['cold_s'] <= 60 and found['warm_s'] <= 10

  return {
    'G1': Row('training step, bfloat16', '>= 1.0', at_least(1), suite.training),
    'G3': Row('attention, d_k = C/8', '>= 1.0', at_least(1), suite.unequal_heads),
    'G2': Row('attention, equal heads', '>= 0.85', at_least(0.85), suite.equal_heads),
    'G6': Row('seconds to 94%', '<= 1.3, >= 94%', sprints, suite.sprint),
    'G4': Row('share of the matrix rate', '>= 0.3', at_least(0.3), suite.utilisation),
    'G5': Row('idle device', '<= 0.03', lambda found: found['ratio'] <= 0.03, suite.idle),
    'G7': Row('second start over first', '<= 60 s, 10 s', starts_fast, suite.first_step),
  }


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.speed')
  if chosen.rounds < 1:
    raise ConfigError(f'--rounds {chosen.rounds}: must be 1 or more')
  for flag, file in (('data', chosen.data), ('airbench', chosen.airbench)):
    if file is not None and not file.is_file():
      raise InputError(f'--{flag} {file}: there is no such file')
  known, facts = _suite(chosen)
  unknown = sorted(set(chosen.only) - set(known))
  if unknown:
    raise ConfigError(f'--only {unknown[0]}: there is no such row; there are {", ".join(known)}')
  if chosen.out is not None:
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
  limit = chosen.minutes
  if limit is None:
    limit = 8 if 'G1' in known else math.inf
  start = time.perf_counter()
  table = []
  names = chosen.only or tuple(known)
  apart = len(names) > 1 and 'C1' in known
  for name in names:
    row = known[name]
    if time.perf_counter() - start > 60 * limit:
      print(f'{name}: {limit} minutes are over (--minutes)', file=sys.stderr)
      table.append((name, row.title, '', row.must, 'not measured'))
      continue
    before = os.getloadavg()[0]
    try:
      found = _apart(name, chosen.rounds) if apart else row.measure(chosen.rounds)
    except ExperimentError as error:
      print(f'{name}: {error}', file=sys.stderr)
      table.append((name, row.title, '', row.must, 'not measured'))
      continue
    load = {'load': [round(before, 2), round(os.getloadavg()[0], 2)]}
    line = json.dumps(
      {'rounds': chosen.rounds} | found | facts | load | {'date': time.strftime('%Y-%m-%d')}
    )
    print(line, flush=True)
    if chosen.out is not None:
      with open(chosen.out, 'a') as file:
        file.write(line + '\n')
    verdict = 'yes' if row.reached(found) else 'no'
    table.append((name, row.title, f'{found["ratio"]:.3g}', row.must, verdict))
  head = ('row', 'measured', 'ratio', 'wanted', 'reached')
  widths = [max(len(cells[i]) for cells in (head, *table)) for i in range(len(head))]
  for cells in (head, *table):
    print('  '.join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip())
  return 0


def _apart(name: str, rounds: int) -> dict[str, Any]:
  """One row for a CPU, measured in a process of its own."""
  command = [sys.executable, '-m', 'experiments.speed', '--only', name, '--rounds', str(rounds)]
  done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
  for line in done.stdout.splitlines():
    if line.startswith('{'):
      return json.loads(line)
  raise RunError('not measured, see above')


def _suite(chosen: Arguments) -> tuple[dict[str, Row], dict[str, Any]]:
  """The rows, and what is known of the machine."""
  if chosen.suite == 'gpu':
    from experiments.speed import gpu

    # This process must not open the GPU: those that measure would find its memory taken.
    facts = gpu.describe()
    if facts['backend'] == 'gpu':
      return gpu_rows(gpu.Suite(data=chosen.data, airbench=chosen.airbench)), facts
    print('there is no GPU here: these are the rows for a CPU', file=sys.stderr)
  from experiments import environment

  env = environment.describe()
  facts = {name: env[name] for name in ('device', 'processor', 'cores', 'versions', 'git')}
  facts['versions']['torch'] = environment.version('torch')
  return rows(), facts


def _loop(rounds: int) -> dict[str, Any]:
  """C9: steps a second of ``fit`` over those of the bare compiled step."""
  from experiments import loop_overhead

  found = loop_overhead.measure(rounds=rounds)
  return found | {'id': 'C9', 'ratio': 1 / found['ratio']}


if __name__ == '__main__':
  run_main(main)
