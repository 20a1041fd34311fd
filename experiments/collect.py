"""What do several runs say together? A JSON line a run, and the mean over seeds with an interval.

  python -m experiments.collect runs/a runs/b runs/c --out results.jsonl

A line holds what the run's ``result.json`` says, with its versions, revision and date, and nothing
of where it ran. The interval is Student's t over seeds, 95%.
"""

import collections
import dataclasses
import datetime
import json
import math
import pathlib
import statistics
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from experiments.errors import ConfigError, RunError, run_main

# Two-sided 95% quantiles of Student's t for 1 to 30 degrees of freedom.
_QUANTILES = """
  12.706 4.303 3.182 2.776 2.571 2.447 2.365 2.306 2.262 2.228
  2.201 2.179 2.160 2.145 2.131 2.120 2.110 2.101 2.093 2.086
  2.080 2.074 2.069 2.064 2.060 2.056 2.052 2.048 2.045 2.042
"""
T95 = tuple(map(float, _QUANTILES.split()))
IDENTITY = ('model', 'attention', 'pool', 'data')
LEFT_OUT = ('test_confusion', 'test_class_accuracy')


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Gathers finished runs."""

  runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
  """Run directories."""
  out: pathlib.Path | None = None
  """JSON-lines file to append to; None only prints."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.collect')
  if not chosen.runs:
    raise ConfigError('name at least one run directory')
  lines = [line_of(run) for run in chosen.runs]
  if chosen.out is not None:
    with open(chosen.out, 'a') as file:
      file.writelines(json.dumps(line) + '\n' for line in lines)
  groups: dict[str, list[float]] = collections.defaultdict(list)
  for line in lines:
    print(json.dumps(line))
    groups[line['id'].rpartition('-')[0]].append(line['test_accuracy'])
  for name, values in groups.items():
    print(f'{name}: test accuracy {interval(values)}')
  return 0


def line_of(run: pathlib.Path) -> dict[str, Any]:
  """The results of a finished run as one flat record.

  Raises:
    RunError: the run is not finished.
  """
  try:
    result, env, config = (
      json.loads((run / name).read_text()) for name in ('result.json', 'env.json', 'config.json')
    )
    finished = (run / 'result.json').stat().st_mtime
  except (OSError, ValueError) as error:
    raise RunError(f'{run} is not a finished run: {error}') from None
  names = [result[key] for key in IDENTITY if result.get(key)]
  if config.get('mimetic') is not None:
    names.append(f'mimetic{config["mimetic"]:g}')
  return {
    'id': '-'.join([*names, f'seed{result["seed"]}']),
    **{key: value for key, value in result.items() if key not in LEFT_OUT},
    'epochs': config['epochs'],
    'batch_size': config['batch_size'],
    'precision': config['precision'],
    'processor': env.get('processor'),
    'cores': env.get('cores'),
    'versions': env['versions'] | {'python': env['python']},
    'git': env['git'],
    'date': datetime.date.fromtimestamp(finished).isoformat(),
  }


def interval(values: Sequence[float]) -> str:
  """``mean +- half-width (n seeds)``; no interval from one seed, nor from more than 31.

  >>> interval([0.8, 0.9])
  '0.8500 ± 0.6353 (95%, 2 seeds)'
  >>> interval([0.1 * seed for seed in range(13)])
  '0.6000 ± 0.2354 (95%, 13 seeds)'
  """
  mean = statistics.fmean(values)
  if not 2 <= len(values) <= len(T95) + 1:
    return f'{mean:.4f} ({len(values)} seeds, no interval)'
  half = T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))
  return f'{mean:.4f} ± {half:.4f} (95%, {len(values)} seeds)'


if __name__ == '__main__':
  run_main(main)
