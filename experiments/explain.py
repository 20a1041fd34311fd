"""Where does a run look, and can it be believed? Maps by many methods, scored, on one page.

  python -m experiments.explain runs/x                             into runs/x/explain
  python -m experiments.explain runs/x --images 64 --methods attention grad_cam random
  python -m experiments.explain runs/x --target true --split choose --out elsewhere

Explains the first images of a split, in the order of the data set, which is not chosen by anyone.
Writes report.html (one file, opens without a network), overlay_METHOD.png, maps.npz (raw maps,
images, labels, predictions, masks) and scores.json.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Literal

import tyro

from experiments.errors import run_main


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Explains what a run predicts, by many methods, and scores each of them."""

  run: Annotated[pathlib.Path, tyro.conf.Positional]
  """Run directory."""
  methods: tuple[str, ...] = ()
  """Methods, as jattn.explain.list_methods() gives them; none is a set that suits the model."""
  images: int = 16
  """How many images: the first of the split."""
  split: Literal['test', 'choose', 'train'] = 'test'
  """Which images."""
  target: Literal['predicted', 'true'] = 'predicted'
  """The class that is asked about."""
  out: pathlib.Path | None = None
  """Where to write; None is explain in the run directory."""
  data: str | None = None
  """The data's name now, as --data of experiments.train, where its folder or file has moved."""
  data_dir: pathlib.Path | None = None
  """Where prepared TFDS data lies now; None is where the run found it."""
  seed: int = 0
  """Of what is drawn at random: the method random, the order of equal pixels, the bootstrap."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.explain')
  from experiments import explanation_files
  from experiments.errors import ConfigError
  from experiments.explanations import Explainer, check_methods, take
  from experiments.reload import load_data_of, reload_run

  if chosen.images < 1:
    raise ConfigError(f'--images {chosen.images} must be at least 1')
  check_methods(chosen.methods)
  run = reload_run(chosen.run)
  dataset = load_data_of(run, chosen.run, data=chosen.data, data_dir=chosen.data_dir)
  sample = take(dataset, chosen.split, chosen.images)
  found = Explainer(run.setup, sample).explanation(
    run.variables, methods=chosen.methods, target=chosen.target, seed=chosen.seed
  )
  facts = explanation_files.facts(
    run.setup,
    path=chosen.run,
    step=run.step,
    of=dataset.num_examples(chosen.split),
    split=chosen.split,
    target=chosen.target,
    count=len(sample.images),
  )
  for method, why in found.skipped.items():
    print(f'{method} is left out: {why}')
  out = chosen.out or chosen.run / 'explain'
  page = explanation_files.write(out, found, run.setup, facts=facts, seed=chosen.seed)
  print(f'{len(sample.images)} images by {", ".join(found.maps)}: {page}')
  return 0


if __name__ == '__main__':
  run_main(main)
