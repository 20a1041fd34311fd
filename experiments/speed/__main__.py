"""How fast is jattn, beside PyTorch and beside what it is built on?

  python -m experiments.speed                 every row of this machine, some 20 minutes
  python -m experiments.speed --only C1       one row
  python -m experiments.speed --out FILE      appends the JSON lines too

What is compared takes turns in one process; each row is one JSON line as soon as it is measured,
``ratio`` by the medians, with the load of the machine before and after. A ratio above 1 is in
jattn's favour, except in C6 and C7 (times of the second run and of importing: smaller is better)
and in ``memory`` (bytes of the dense form over those of the chunked). Rows C1 to C5 and C8 need
PyTorch (``pip install 'jattn[torch]'``); without it they say so. A short table comes last.
"""

import dataclasses
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from experiments.errors import ConfigError, run_main


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Times jattn."""

  only: tuple[str, ...] = ()
  """Rows, such as C1; none is all."""
  rounds: int = 20
  """Of each that is compared, after two to warm up."""
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
  """Every row by its name."""
  from experiments.speed import attention, loading, networks, starts

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
    'memory': Row('attention, N = 16,384', '>= 20', at_least(20), lambda _: attention.memory()),
  }


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.speed')
  known = rows()
  unknown = sorted(set(chosen.only) - set(known))
  if unknown:
    raise ConfigError(f'--only {unknown[0]}: there is no such row; there are {", ".join(known)}')
  if chosen.rounds < 1:
    raise ConfigError(f'--rounds {chosen.rounds}: must be 1 or more')
  if chosen.out is not None:
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
  from experiments import environment

  env = environment.describe()
  facts = {name: env[name] for name in ('device', 'processor', 'cores', 'versions', 'git')}
  facts['versions']['torch'] = environment.version('torch')
  table = []
  for name in chosen.only or known:
    row = known[name]
    before = os.getloadavg()[0]
    try:
      found = row.measure(chosen.rounds)
    except ConfigError as error:
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


def _loop(rounds: int) -> dict[str, Any]:
  """C9: steps a second of ``fit`` over those of the bare compiled step."""
  from experiments import loop_overhead

  found = loop_overhead.measure(rounds=rounds)
  return found | {'id': 'C9', 'ratio': 1 / found['ratio']}


if __name__ == '__main__':
  run_main(main)
