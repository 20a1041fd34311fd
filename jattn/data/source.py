"""What a kind of dataset gives to the loader: named splits of encoded images with labels."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

import numpy as np

from jattn.data.errors import DataError
from jattn.data.images import Square

# Above this many bytes of files a digest samples each file instead of reading it whole.
_WHOLE_FILES_BYTES = 4 << 30
_SAMPLE_BYTES = 1 << 16


class Examples(Protocol):
  """Random access to the images and labels of one split as it is stored."""

  def __len__(self) -> int: ...

  def read(self, indices: Sequence[int], square: Square) -> tuple[np.ndarray, np.ndarray]:
    """Decodes: images [k, S, S, 3] uint8 and labels [k] int32, checked.

    Raises:
      DataError: an image or a label cannot be read; the message names it.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Source:
  """A dataset before decoding.

  Attributes:
    label: what it is, without the path it lies at: 'tfds:cifar10/3.0.2', 'folder', 'npz'.
    class_names: L names.
    examples: the splits as stored, 'train' and 'test' at least.
    rows: for each of 'train', 'choose' and 'test' the stored split it comes from and the rows of it
      (all where None).
    natural_size: the side of the square images when the user asks for none.
    digest: hex SHA-256 of the content of the files.
    encoded: whether reading costs decoding, so that a cache pays.
  """

  label: str
  class_names: tuple[str, ...]
  examples: Mapping[str, Examples]
  rows: Mapping[str, tuple[str, np.ndarray | None]]
  natural_size: int
  digest: str
  encoded: bool = True


def check_labels(
  labels: np.ndarray, *, num_classes: int, split: str, indices: Sequence[int] | None = None
) -> np.ndarray:
  """Checks that labels are integers in 0..L-1 and returns them as int32.

  Args:
    labels: [n].
    num_classes: L.
    split: for the message.
    indices: the number of each label's example in the split, for the message; 0..n-1 if None.

  Raises:
    DataError: not one integer an example, or out of range; names the first index and its value.
  """
  labels = np.asarray(labels)
  if labels.ndim != 1:
    raise DataError(f'labels of split {split!r} have shape {labels.shape}, not [n]')
  if labels.dtype.kind not in 'iu':
    bad = _first_not_integer(labels)
    example = f', for instance {labels[bad]!s} of example {bad}' if len(labels) else ''
    raise DataError(f'labels of split {split!r} are {labels.dtype}, not integers{example}')
  wrong = np.flatnonzero((labels < 0) | (labels >= num_classes))
  if wrong.size:
    index = wrong[0] if indices is None else indices[wrong[0]]
    raise DataError(
      f'label {labels[wrong[0]]} of example {index} in split {split!r} '
      f'is outside 0..{num_classes - 1}'
    )
  return labels.astype(np.int32)


def _first_not_integer(labels: np.ndarray) -> int:
  if labels.dtype.kind != 'f':
    return 0
  wrong = np.flatnonzero(~np.isfinite(labels) | (labels != np.trunc(labels)))
  return int(wrong[0]) if wrong.size else 0


def digest_files(files: Iterable[tuple[str, pathlib.Path]]) -> str:
  """The SHA-256 of files by name and content.

  Up to 4 GiB in all every byte counts; above that the name, the length, the first and the last
  64 KiB of each file do.
  """
  files = list(files)
  lengths = [os.path.getsize(path) for _, path in files]
  whole = sum(lengths) <= _WHOLE_FILES_BYTES
  total = hashlib.sha256()
  for (name, path), length in zip(files, lengths, strict=True):
    with open(path, 'rb') as file:
      if whole or length <= 2 * _SAMPLE_BYTES:
        content = hashlib.file_digest(file, 'sha256')
      else:
        content = hashlib.sha256(file.read(_SAMPLE_BYTES))
        file.seek(-_SAMPLE_BYTES, os.SEEK_END)
        content.update(file.read(_SAMPLE_BYTES))
    total.update(f'{name}\0{length}\0{content.hexdigest()}\n'.encode())
  return total.hexdigest()
