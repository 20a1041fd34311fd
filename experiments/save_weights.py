"""A run leaves as files that other tools read: reloads it by its directory and writes its weights.

  python -m experiments.save_weights runs/x --out FOLDER                     weights, config, card
  python -m experiments.save_weights runs/x --out FOLDER --program x.export  and a program

Where the run trained one of timm's networks as it is, timm loads the folder
(``timm.create_model('local-dir:FOLDER', pretrained=True)``); ``jattn.load_weights`` and
``--init-from FOLDER`` load every one. Of a moving average the averaged weights are written.
"""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import tyro

from experiments.errors import run_main
from experiments.settings import TrainConfig


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Writes the weights of a run."""

  run: Annotated[pathlib.Path, tyro.conf.Positional]
  """Run directory."""
  out: pathlib.Path
  """Folder for model.safetensors, config.json and README.md."""
  program: pathlib.Path | None = None
  """File for the model as a jax.export program, which runs without jattn; None is none."""
  overwrite: bool = False
  """Replace files of these names."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(
    Arguments,
    args=arguments,
    prog='python -m experiments.save_weights',
    config=(tyro.conf.FlagConversionOff,),
  )
  from experiments.errors import RunError
  from experiments.reload import reload_run
  from jattn import weights

  run = reload_run(chosen.run)
  facts, config = run.setup.facts, run.setup.config
  try:
    weights.save_weights(
      chosen.out,
      run.setup.model,
      run.variables,
      image_size=facts.size,
      preprocessing={
        'mean': list(facts.mean),
        'std': list(facts.std),
        'interpolation': config.resample,
        'crop_pct': config.crop_ratio,
      },
      description=f'Trained on {facts.name} for {run.step} steps.',
      overwrite=chosen.overwrite,
      **naming(config),
    )
    print(f'wrote {chosen.out}')
    if chosen.program is not None:
      weights.export_model(
        chosen.program,
        run.setup.model,
        run.variables,
        image_size=facts.size,
        overwrite=chosen.overwrite,
      )
      print(f'wrote {chosen.program}; it takes normalised images')
  except weights.WeightsError as error:
    raise RunError(str(error)) from None
  return 0


def naming(config: TrainConfig) -> dict[str, Any]:
  """Under whose names: timm's only where the network is timm's as it stands."""
  import jattn

  slots = {'attention': config.attention, 'pool': config.pool}
  changed = {slot: part for slot, part in slots.items() if part is not None}
  if changed or jattn.models.FACTS[config.model].num_classes != 1000:
    return {'name': config.model, 'library': 'jattn', 'settings': changed}
  return {'name': config.model, 'library': 'timm'}


if __name__ == '__main__':
  run_main(main)
