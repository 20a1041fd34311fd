"""Files of named NumPy arrays (.npz), read without pickle and no further than the file is long."""

import zipfile
from collections.abc import Collection
from pathlib import Path

import ml_dtypes
import numpy as np

from jattn.npz_member import read_member
from jattn.weights.errors import WeightsError

# Packed zeros are a thousandth of their size, other weights nine tenths.
_LARGEST = 64 * 2**20
_DENSEST = 8


class Archive:
  """The arrays of one file; ``read`` gives those that are asked for.

  Attributes:
    names: of every array, as ``np.load`` would give them.
  """

  def __init__(self, file: Path):
    """Reads the list of members; WeightsError if it, or a member, is not what NumPy writes."""
    self._file = file
    try:
      with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    except Exception as error:
      # zipfile lets struct.error, NotImplementedError, UnicodeDecodeError and others through.
      raise WeightsError(f'{file}: is a damaged .npz: {error}') from None
    self._members: dict[str, zipfile.ZipInfo] = {}
    for info in members:
      if fault := _fault(info, self._members):
        raise WeightsError(f'{file}: {info.filename!r} {fault}')
      self._members[info.filename.removesuffix('.npy')] = info
    declared, size = sum(info.file_size for info in members), file.stat().st_size
    if declared > max(_LARGEST, _DENSEST * size):
      raise WeightsError(f'{file}: declares {declared:,} bytes of arrays in a file of {size:,}')
    self.names = frozenset(self._members)

  def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
    """The arrays of ``names`` that are there; WeightsError where one is damaged or of objects."""
    try:
      with zipfile.ZipFile(self._file) as archive:
        return {
          name: self._read(archive, name, info)
          for name, info in self._members.items()
          if name in names
        }
    except (OSError, zipfile.BadZipFile) as error:
      raise WeightsError(f'{self._file}: cannot be read: {error}') from None

  def _read(self, archive: zipfile.ZipFile, name: str, info: zipfile.ZipInfo) -> np.ndarray:
    try:
      array = read_member(archive, info)
    except ValueError as error:
      raise WeightsError(f'{self._file}: array {name!r} {error}') from None
    # NumPy has no name for bfloat16 and stores it as two bytes of anything.
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype('V2') else array


def _fault(info: zipfile.ZipInfo, seen: Collection[str]) -> str | None:
  """Why a member is refused, or None."""
  name = info.filename
  if not name.endswith('.npy'):
    return 'is no array'
  if name.startswith('/') or '\\' in name or '..' in name.split('/') or ':' in name:
    return 'is called as no array is'
  if name.removesuffix('.npy') in seen:
    return 'is there twice'
  if info.flag_bits & 0x1:
    return 'is encrypted'
  if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    return 'is compressed in a way that NumPy does not write'
  return None
