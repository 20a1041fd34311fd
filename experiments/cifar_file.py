"""CIFAR-10, or another small prepared set, as one file to carry to a machine without TFDS.

  python -m experiments.cifar_file tfds:cifar10 --data-dir DIR --out cifar10.npz

The file has the images as they are stored, JPEG or PNG, one after the other as bytes: of JPEG
CIFAR-10 some 53 MB instead of the 184 MB of its pixels. ``experiments.speed --suite gpu --data
cifar10.npz`` reads it, and so does ``as_arrays``, which writes what ``npz:FILE`` reads.
"""

import dataclasses
import io
import pathlib
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
import tyro

from experiments.errors import InputError, run_main


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Writes a prepared data set as one file."""

  data: Annotated[str, tyro.conf.Positional]
  """tfds:NAME."""
  out: pathlib.Path
  """.npz file to write."""
  data_dir: pathlib.Path | None = None
  """Of prepared TFDS sets."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.cifar_file')
  if not chosen.data.startswith('tfds:'):
    raise InputError(f'{chosen.data}: only tfds:NAME has stored images to take')
  from jattn.data import DataError
  from jattn.data.prepared import open_prepared

  try:
    source = open_prepared(
      chosen.data.removeprefix('tfds:'),
      data_dir=chosen.data_dir,
      choose_fraction=0.0,
      seed_of_split=0,
      max_pixels=2**24,
    )
    content = {
      split: source.examples[split].stored(range(len(source.examples[split])))
      for split in ('train', 'test')
    }
  except DataError as error:
    raise InputError(str(error)) from None
  chosen.out.parent.mkdir(parents=True, exist_ok=True)
  write(chosen.out, content)
  sizes = ', '.join(f'{len(labels)} of {split}' for split, (_, labels) in content.items())
  print(f'{chosen.out}: {sizes}, {chosen.out.stat().st_size / 1e6:.0f} MB')
  return 0


def write(file: pathlib.Path, content: dict[str, tuple[Sequence[bytes], Any]]) -> None:
  """Encoded images and labels of each split."""
  arrays = {}
  for split, (encoded, labels) in content.items():
    arrays[f'bytes_{split}'] = np.frombuffer(b''.join(encoded), np.uint8)
    arrays[f'ends_{split}'] = np.cumsum([len(image) for image in encoded], dtype=np.int64)
    arrays[f'y_{split}'] = np.asarray(labels, np.int64)
  with open(file, 'wb') as opened:
    np.savez(opened, **arrays)


def as_arrays(file: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
  """``file`` itself where it has pixels; otherwise ``out``, written with its images decoded.

  Raises:
    InputError: it cannot be read, or has neither.
  """
  from PIL import Image

  try:
    with np.load(file, allow_pickle=False) as arrays:
      if 'x_train' in arrays:
        return file
      decoded = {}
      for split in ('train', 'test'):
        data, ends = arrays[f'bytes_{split}'].tobytes(), arrays[f'ends_{split}']
        starts = (0, *ends[:-1])
        decoded[f'x_{split}'] = np.stack(
          [
            np.asarray(Image.open(io.BytesIO(data[start:end])).convert('RGB'))
            for start, end in zip(starts, ends, strict=True)
          ]
        )
        decoded[f'y_{split}'] = arrays[f'y_{split}']
  except (OSError, ValueError, KeyError) as error:
    raise InputError(f'{file}: not a file of experiments.cifar_file: {error}') from None
  np.savez(out, **decoded)
  return out


if __name__ == '__main__':
  run_main(main)
