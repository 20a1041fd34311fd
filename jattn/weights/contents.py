"""What a file of weights is: told by its content, not its name, and before any of it is used."""

import os
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from jattn.weights.errors import WeightsError

Kind = Literal['safetensors', 'npz']
WEIGHTS = 'model.safetensors'
_PICKLE = (
  "is a pickle (PyTorch's .pt, .pth, .bin or .pkl), which can run code of its maker and is never "
  'read; write it as .safetensors where you trust it, with safetensors.torch.save_file'
)
# How files begin that people take for weights.
_OTHERS = {
  b'version https://git-lfs': 'is a pointer of Git LFS, not the file: fetch it (git lfs pull)',
  b'<!DOCTYPE': 'is a web page, not weights: the download went wrong',
  b'<html': 'is a web page, not weights: the download went wrong',
  b'\x89HDF': 'is an HDF5 file; jattn reads .safetensors and .npz',
  b'\x1f\x8b': 'is compressed with gzip: unpack it first',
  b'\x93NUMPY': 'is one array (.npy); jattn reads .safetensors and .npz',
}


def find(path: str | os.PathLike[str]) -> Path:
  """The file of weights at ``path``: itself, or ``model.safetensors`` of a folder.

  Raises:
    WeightsError: nothing is there, or something that is neither a file nor a folder.
  """
  try:
    folder = Path(path).expanduser()
    if not folder.is_dir():
      return regular(folder)
    if not os.path.lexists(folder / WEIGHTS):
      raise WeightsError(f'{folder}: this folder holds no {WEIGHTS}')
  except (OSError, ValueError, RuntimeError) as error:
    raise _told(path, error) from None
  return regular(folder / WEIGHTS)


def regular(path: str | os.PathLike[str]) -> Path:
  """The file at ``path``, or where a link there leads.

  Raises:
    WeightsError: nothing is there, or something that is no file: a pipe would be waited for, and
      a device never ends.
  """
  try:
    file = Path(path).expanduser()
    mode = file.stat().st_mode
  except FileNotFoundError:
    raise WeightsError(f'{path}: there is no such file') from None
  except (OSError, ValueError, RuntimeError) as error:
    raise _told(path, error) from None
  if not stat.S_ISREG(mode):
    raise WeightsError(f'{file}: is no file')
  return file


@contextmanager
def opened(file: Path) -> Iterator[tuple[BinaryIO, int]]:
  """The file, open, and its size in bytes; WeightsError where it cannot be read."""
  try:
    with file.open('rb') as stream:
      yield stream, os.fstat(stream.fileno()).st_size
  except OSError as error:
    raise WeightsError(f'{file}: cannot be read: {error}') from None


def kind_of(file: Path) -> Kind:
  """Whether it is a safetensors or an .npz file.

  Raises:
    WeightsError: it is neither; what it is instead is said where its first bytes tell.
  """
  with opened(file) as (stream, size):
    head = stream.read(64)
  if not size:
    raise WeightsError(f'{file}: is empty')
  # Before all else: the length of a header can look like the first two bytes of a pickle.
  if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < size:
    return 'safetensors'
  if head[:2] == b'PK':
    return _kind_of_zip(file)
  if head[:1] == b'\x80' and head[1:2] in (b'\x02', b'\x03', b'\x04', b'\x05'):
    raise WeightsError(f'{file}: {_PICKLE}')
  for start, what in _OTHERS.items():
    if head.startswith(start):
      raise WeightsError(f'{file}: {what}')
  if file.suffix == '.safetensors':
    return 'safetensors'
  raise WeightsError(
    f'{file}: is neither .safetensors nor .npz (nothing else is read, least of all a pickle)'
  )


def _kind_of_zip(file: Path) -> Kind:
  try:
    with zipfile.ZipFile(file) as archive:
      names = archive.namelist()
  except Exception as error:
    # zipfile lets struct.error, NotImplementedError, UnicodeDecodeError and others through.
    raise WeightsError(f'{file}: is a damaged .npz: {error}') from None
  if any(name.endswith(('.pkl', '.pickle')) for name in names):
    raise WeightsError(f'{file}: {_PICKLE}')
  return 'npz'


def _told(path: object, error: Exception) -> WeightsError:
  """The error itself where it tells of weights already."""
  if isinstance(error, WeightsError):
    return error
  return WeightsError(f'{path}: cannot be read: {error}')
