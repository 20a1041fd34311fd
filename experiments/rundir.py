"""The directory that one run owns."""

import fcntl
import json
import math
import os
import pathlib
import zlib
from typing import Any

from experiments.errors import RunError

_LOST = 'bring it back from a copy, or remove it if the run is to write it anew'


class RunDirectory:
  """Files of a run, held by one process at a time; a context manager.

  ``config.json``, ``data.json``, ``env.json``, ``status.json``, ``result.json`` are replaced whole
  or not at all; ``metrics.jsonl`` only grows, and is cut back to the step that a resumed run
  starts from.

  Args:
    path: need not exist.
    follows: another process of the same run writes; this one reads, and its writing does nothing.
  """

  def __init__(self, path: pathlib.Path, *, follows: bool = False):
    self.path = pathlib.Path(path).resolve()
    self.follows = follows
    self._lock = None

  def __enter__(self) -> 'RunDirectory':
    """Creates and locks the directory.

    Raises:
      RunError: it cannot be written, or another process holds it.
    """
    if self.follows:
      return self
    try:
      self.path.mkdir(parents=True, exist_ok=True)
      self._lock = open(self.path / '.lock', 'a+')
    except OSError as error:
      raise RunError(f'--out {self.path} cannot be written: {error.strerror}') from None
    try:
      fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
      self._lock.seek(0)
      holder = self._lock.read().strip() or 'another process'
      self._lock.close()
      raise RunError(
        f'--out {self.path} is in use by {holder}; wait for it or choose another'
      ) from None
    self._lock.truncate(0)
    self._lock.write(f'process {os.getpid()}')
    self._lock.flush()
    return self

  def __exit__(self, *_) -> None:
    if self._lock is not None:
      self._lock.close()

  def looks(self) -> int:
    """A number for who holds the directory and how far the run in it is."""
    files = (self.path / name for name in ('.lock', 'config.json', 'result.json'))
    return zlib.crc32(b'-'.join(f.read_bytes() if f.exists() else b'' for f in files)) >> 1

  def read(self, name: str) -> Any | None:
    """The JSON of a file, or None if it is not there.

    Raises:
      RunError: the file is there and cannot be read.
    """
    try:
      value = json.loads((self.path / name).read_text())
    except (FileNotFoundError, NotADirectoryError):
      return None
    except (OSError, ValueError) as error:
      raise RunError(f'{self.path / name} cannot be read: {error}; {_LOST}') from None
    if not isinstance(value, dict):
      raise RunError(f'{self.path / name} is damaged: it holds no JSON object; {_LOST}')
    return value

  def write(self, name: str, value: Any) -> None:
    """Replaces a JSON file in one motion, so that a reader or a crash never sees half of it."""
    if self.follows:
      return
    partial = self.path / f'.{name}.partial'
    partial.write_text(json.dumps(finite(value), indent=2) + '\n')
    os.replace(partial, self.path / name)

  def status(self, state: str, step: int, reason: str = '') -> None:
    """Writes ``status.json``: state is running, done, stopped, diverged or failed."""
    self.write('status.json', {'state': state, 'step': step, 'reason': reason})

  def append(self, line: dict[str, Any]) -> None:
    """Adds one line to ``metrics.jsonl``."""
    if self.follows:
      return
    with open(self.path / 'metrics.jsonl', 'a') as file:
      file.write(json.dumps(finite(line)) + '\n')

  def metrics(self) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; one that was cut off or damaged is left out."""
    try:
      lines = (self.path / 'metrics.jsonl').read_text(errors='replace').splitlines()
    except FileNotFoundError:
      return []
    parsed = []
    for line in lines:
      try:
        values = json.loads(line)
      except ValueError:
        continue
      if isinstance(values, dict) and isinstance(values.get('step'), int):
        parsed.append(values)
    return parsed

  def rewind(self, step: int) -> None:
    """Drops the metrics after ``step``: they will be measured again."""
    if self.follows:
      return
    kept = [line for line in self.metrics() if line['step'] <= step]
    partial = self.path / '.metrics.jsonl.partial'
    partial.write_text(''.join(json.dumps(line) + '\n' for line in kept))
    os.replace(partial, self.path / 'metrics.jsonl')


def finite(value: Any) -> Any:
  """JSON has no NaN: numbers that are not finite become null."""
  if isinstance(value, float) and not math.isfinite(value):
    return None
  if isinstance(value, dict):
    return {key: finite(item) for key, item in value.items()}
  if isinstance(value, list | tuple):
    return [finite(item) for item in value]
  return value
