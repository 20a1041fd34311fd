"""How good is a run? Reloads it by its directory and measures a split, every image once.

  python -m experiments.evaluate runs/x                 the test split
  python -m experiments.evaluate runs/x --split choose

Prints one JSON object: accuracy, top5_accuracy, nll, ece, brier, count, accuracy by class.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from experiments.errors import run_main


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Measures a run on one split of its data."""

  run: Annotated[pathlib.Path, tyro.conf.Positional]
  """Run directory."""
  split: Literal['test', 'choose', 'train'] = 'test'
  """Which images."""
  data_dir: pathlib.Path | None = None
  """Where prepared TFDS data lies now; None is where the run found it."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.evaluate')
  from experiments.errors import InputError
  from experiments.reload import reload_run
  from experiments.run import evaluate_split
  from experiments.rundir import finite
  from experiments.setup import load_data

  run = reload_run(chosen.run)
  config = run.setup.config
  if chosen.data_dir is not None:
    config = dataclasses.replace(config, data_dir=chosen.data_dir)
  dataset = load_data(config)
  if dataset.fingerprint != run.setup.facts.fingerprint:
    raise InputError(f'--data {config.data} is not the data that {chosen.run} was trained on')
  metrics = evaluate_split(run.setup, dataset, chosen.split, run.variables, run.setup.eval_step())
  by_class = dict(zip(dataset.class_names, metrics.class_accuracy().tolist(), strict=True))
  print(
    json.dumps(
      finite({'split': chosen.split, 'step': run.step, **metrics.result(), 'by_class': by_class})
    )
  )
  return 0


if __name__ == '__main__':
  run_main(main)
