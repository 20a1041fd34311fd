"""What does a run see in these images, and where does it look?

  python -m experiments.predict runs/x cat.jpg dog.png --out looked.png

Prints one JSON line an image: its path and the likeliest classes with their probabilities. With
``--out`` also draws the images with the map over each.
"""

import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import tyro

from experiments.errors import run_main

if TYPE_CHECKING:
  from experiments.setup import Setup


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Classifies image files with a trained run."""

  run: Annotated[pathlib.Path, tyro.conf.Positional]
  """Run directory."""
  images: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
  """Image files: JPEG, PNG, WEBP, BMP or GIF."""
  top: int = 3
  """How many classes to print for each image."""
  out: pathlib.Path | None = None
  """PNG to draw the images and their maps into; None draws nothing."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.predict')
  import jax
  import numpy as np

  from experiments import pictures
  from experiments.errors import ConfigError
  from experiments.reload import reload_run

  if not chosen.images:
    raise ConfigError('name at least one image file')
  if chosen.top < 1:
    raise ConfigError(f'--top {chosen.top} must be at least 1')
  if chosen.out is not None and (
    chosen.out.suffix.lower() != '.png' or not chosen.out.absolute().parent.is_dir()
  ):
    raise ConfigError(f'--out {chosen.out} must be a file called .png in a folder that is there')
  run = reload_run(chosen.run)
  setup = run.setup
  images = np.stack([_read(path, setup) for path in chosen.images])
  prediction = jax.device_get(
    jax.jit(lambda v, x: setup.model.apply(v, setup.prepare(x), train=False))(run.variables, images)
  )
  probabilities = np.exp(prediction.logits - prediction.logits.max(axis=-1, keepdims=True))
  probabilities /= probabilities.sum(axis=-1, keepdims=True)
  names = setup.facts.class_names
  ranked = np.argsort(-probabilities, axis=-1)
  for path, order, row in zip(chosen.images, ranked, probabilities, strict=True):
    classes = {names[index]: round(float(row[index]), 6) for index in order[: chosen.top]}
    print(json.dumps({'image': str(path), 'classes': classes}))
  if chosen.out is not None:
    drawn = pictures.draw_attention(
      chosen.out,
      images=images,
      maps=prediction.maps,
      truth=[None] * len(images),
      predicted=[names[order[0]] for order in ranked],
    )
    if not drawn:
      print(f'{setup.config.model} has no map to draw')
  return 0


def _read(path: pathlib.Path, setup: 'Setup'):
  from experiments.errors import InputError
  from jattn.data import DataError, decode, fit

  config = setup.config
  try:
    image = decode(path)
    return fit(image, setup.facts.size, crop_ratio=config.crop_ratio, resample=config.resample)
  except DataError as error:
    raise InputError(f'{path} {error}') from None


if __name__ == '__main__':
  run_main(main)
