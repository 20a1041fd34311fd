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
  data: str | None = None
  """The data's name now, as --data of experiments.train, where its folder or file has moved."""
  data_dir: pathlib.Path | None = None
  """Where prepared TFDS data lies now; None is where the run found it."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.evaluate')
  from experiments.reload import load_data_of, reload_run
  from experiments.run import evaluate_split
  from experiments.rundir import finite

  run = reload_run(chosen.run)
  dataset = load_data_of(run, chosen.run, data=chosen.data, data_dir=chosen.data_dir)
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
