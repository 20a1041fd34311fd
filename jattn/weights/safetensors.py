"""Safetensors files: read after their header has been checked, written whole.

The library that defines the format reads them: before it allocates it holds every offset against
the length of the file, without gaps or overlaps, and it gives bfloat16 without PyTorch. What it
lets pass is checked here first: of two tensors of one name it takes the last in silence, and for
types that NumPy lacks, 65 axes or lengths whose product overflows it raises whatever NumPy does.
"""

import json
import math
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jattn.weights.contents import opened
from jattn.weights.errors import WeightsError

# 100,000 tensors have a header of 10 MB.
MAX_HEADER = 16 * 2**20
_TYPES = frozenset('BF16 BOOL F16 F32 F64 I8 I16 I32 I64 U8 U16 U32 U64'.split())


class Archive:
  """The tensors of one file; ``read`` gives those that are asked for, in the type of the file.

  Attributes:
    names: of every tensor.
  """

  def __init__(self, file: Path):
    """Reads the header; WeightsError if it is not what the format says."""
    self._file = file
    self.names = frozenset(_header(file))

  def read(self, names: Collection[str]) -> dict[str, np.ndarray]:
    """The tensors of ``names`` that are there; WeightsError where the file is damaged."""
    try:
      # mmap would end the process, should somebody cut the file while it is read.
      with safe_open(self._file, framework='np', backend='pread') as tensors:
        return {name: tensors.get_tensor(name) for name in tensors.keys() if name in names}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
      raise WeightsError(f'{self._file}: is a damaged .safetensors file: {error}') from None


def write(file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
  """Writes the tensors; their order in memory is made that of their axes first.

  Raises:
    OSError: the file cannot be written.
  """
  try:
    # The library writes the memory of an array as it lies, also of a transposed view.
    whole = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    save_file(whole, file, dict(metadata))
  except SafetensorError as error:
    raise OSError(str(error)) from None


def _header(file: Path) -> dict[str, dict]:
  """Name -> what the file says of each tensor."""
  with opened(file) as (stream, size):
    length = int.from_bytes(stream.read(8), 'little')
    if size < 10 or length > size - 8:
      raise WeightsError(f'{file}: is cut short: {size:,} bytes, and a header of {length:,}')
    if length > MAX_HEADER:
      raise WeightsError(f'{file}: has a header of {length:,} bytes, more than {MAX_HEADER:,}')
    text = stream.read(length)
  try:
    header = json.loads(text.decode(), object_pairs_hook=_once)
    if not isinstance(header, dict):
      raise ValueError('the header is no mapping')
    header.pop('__metadata__', None)
    for name, entry in header.items():
      _check_entry(name, entry, size - 8 - length)
  except (ValueError, RecursionError) as error:
    raise WeightsError(f'{file}: is no sound .safetensors file: {error}') from None
  return header


def _once(pairs: list[tuple]) -> dict:
  mapping = dict(pairs)
  if len(mapping) < len(pairs):
    seen: set = set()
    twice = next(name for name, _ in pairs if name in seen or seen.add(name))
    raise ValueError(f'{twice!r} is there twice')
  return mapping


def _check_entry(name: str, entry: object, data: int) -> None:
  """ValueError for a type that is not read, or a shape or offsets that cannot be."""
  if not isinstance(entry, dict):
    raise ValueError(f'{name!r} is not described')
  dtype, shape, offsets = (entry.get(field) for field in ('dtype', 'shape', 'data_offsets'))
  if not isinstance(dtype, str) or dtype not in _TYPES:
    raise ValueError(f'{name!r} is stored as {dtype!r}, which is not read')
  for what, numbers in (('shape', shape), ('offsets', offsets)):
    if not isinstance(numbers, list) or not all(type(n) is int and n >= 0 for n in numbers):
      raise ValueError(f'{name!r} has no {what}')
  if len(shape) > 32 or math.prod(n or 1 for n in shape) > max(data, 1):
    raise ValueError(f'{name!r} of shape {shape} is larger than the file')
  if len(offsets) != 2 or not offsets[0] <= offsets[1] <= data:
    raise ValueError(f'{name!r} lies at {offsets}, outside the {data:,} bytes of the file')
