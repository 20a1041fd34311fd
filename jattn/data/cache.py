"""Decoded arrays kept on disk: trusted only as far as their hash."""

import contextlib
import hashlib
import json
import os
import pathlib
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def default_directory() -> pathlib.Path:
  """$XDG_CACHE_HOME/jattn, by default ~/.cache/jattn."""
  root = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(root).expanduser() / 'jattn'


def key(facts: Mapping[str, Any]) -> str:
  """The name of an entry: the hex SHA-256 of everything that decides its content."""
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read(directory: pathlib.Path, name: str, count: int) -> list[np.ndarray] | None:
  """Reads `count` arrays written by `write`.

  Returns:
    the arrays, or None if there is no such entry or it is damaged; the latter warns.
  """
  path = directory / f'{name}.npy'
  try:
    with open(path, 'rb') as file:
      arrays = [np.load(file, allow_pickle=False) for _ in range(count)]
      kept = np.load(file, allow_pickle=False)
    if kept.tobytes() == _digest(arrays):
      return arrays
    reason = 'its hash does not match'
  except OSError:
    return None
  except Exception as error:
    # A damaged header of a .npy file can raise nearly anything, SyntaxError and MemoryError too.
    reason = f'{type(error).__name__}'
  warnings.warn(f'the cached images {path} are damaged ({reason}): decoding again', stacklevel=2)
  return None


def write(directory: pathlib.Path, name: str, arrays: Sequence[np.ndarray]) -> None:
  """Writes the arrays and their hash into one file, atomically.

  A directory that cannot be written, or a full disk, is no error: the next load decodes again.
  """
  with contextlib.suppress(OSError):
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, suffix='.tmp')
    try:
      with os.fdopen(handle, 'wb') as file:
        for array in arrays:
          np.save(file, array, allow_pickle=False)
        np.save(file, np.frombuffer(_digest(arrays), np.uint8), allow_pickle=False)
      os.replace(temporary, directory / f'{name}.npy')
    except BaseException:
      with contextlib.suppress(OSError):
        os.unlink(temporary)
      raise


def _digest(arrays: Sequence[np.ndarray]) -> bytes:
  digest = hashlib.sha256()
  for array in arrays:
    digest.update(f'{array.dtype.str}{array.shape}'.encode())
    digest.update(np.ascontiguousarray(array).data)
  return digest.digest()
