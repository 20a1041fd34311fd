"""The sha256 manifest of a directory: what lay in it when it was written, to the last bit.

`manifest.sha256` holds one line `hex  relative/path` for every file below the directory but itself,
sorted by path: the format of `sha256sum`, so `sha256sum --check manifest.sha256` inside the
directory says the same without Python. A manifest proves that nothing has changed by accident. It
is no signature: who can write the files can write a manifest too.
"""

import hashlib
import os
import re
from pathlib import Path, PurePosixPath

NAME = 'manifest.sha256'

# Hex in lower case only: a flipped bit turns 'a' into 'A', and that must not pass for the same
# digest.
_LINE = re.compile(r'([0-9a-f]{64})  (.+)')
_LARGEST_MANIFEST = 2**26


class ManifestError(RuntimeError):
  """The directory and its manifest do not agree; the message is the reason in one line."""


def write(directory: Path) -> None:
  """Hashes every file below `directory` and writes its manifest, durably and atomically.

  Either the whole manifest is there afterwards or none. Raises ManifestError where the directory
  holds anything but plain files and directories, OSError where it cannot be read or written.
  """
  directory = Path(directory)
  lines = [f'{_digest(directory / name)}  {name}\n' for name in _files(directory)]
  temporary = directory / f'{NAME}.tmp'
  with open(temporary, 'w', encoding='utf-8', newline='\n') as file:
    file.writelines(lines)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, directory / NAME)
  sync_directory(directory)


def fault(directory: Path) -> str | None:
  """Why `directory` cannot be believed, in one line, or None where it is what its manifest says.

  Noticed: any changed bit, in the files or in the manifest; a truncated, missing or added file; a
  missing manifest; a symbolic link or device anywhere; a path in the manifest that leads out of the
  directory. Files are read in pieces, and only those found below the directory: no path of the
  manifest is opened. Raises nothing: what cannot be read is a fault.
  """
  try:
    _check(Path(directory))
  except ManifestError as error:
    return str(error)
  except OSError as error:
    return f'{error.filename or directory} cannot be read ({error.strerror or error})'
  return None


def sync_directory(directory: Path) -> None:
  """Makes renames inside `directory` durable; without it a power cut can undo them."""
  descriptor = os.open(directory, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def _check(directory: Path) -> None:
  if directory.is_symlink():
    raise ManifestError('it is a symbolic link')
  if not directory.is_dir():
    raise ManifestError('it is not a directory' if directory.exists() else 'it does not exist')
  found = _files(directory)
  expected = _read(directory / NAME)
  if missing := sorted(expected.keys() - set(found)):
    raise ManifestError(f'{missing[0]} is missing')
  if added := sorted(set(found) - expected.keys()):
    raise ManifestError(f'{added[0]} is not in {NAME}')
  for name in found:
    if _digest(directory / name) != expected[name]:
      raise ManifestError(f'{name} is not the file that was saved (sha256 differs)')


def _files(directory: Path) -> list[str]:
  """The relative paths of all files below `directory` but its own manifest, sorted."""
  names = []
  pending = [directory]
  while pending:
    with os.scandir(pending.pop()) as entries:
      for entry in entries:
        name = Path(entry.path).relative_to(directory).as_posix()
        if entry.is_symlink():
          raise ManifestError(f'{name!r} is a symbolic link')
        if entry.is_dir(follow_symlinks=False):
          pending.append(Path(entry.path))
        elif not entry.is_file(follow_symlinks=False):
          raise ManifestError(f'{name!r} is neither a file nor a directory')
        elif '\n' in name or '\\' in name:
          raise ManifestError(f'{name!r} is no name for a file of a checkpoint')
        elif name != NAME:
          names.append(name)
  return sorted(names)


def _read(path: Path) -> dict[str, str]:
  """The digest of each path in the manifest; a manifest that is not exactly one is refused."""
  if not path.exists():
    raise ManifestError(f'it has no {NAME}')
  if path.stat().st_size > _LARGEST_MANIFEST:
    raise ManifestError(f'{NAME} is too large to be one')
  try:
    text = path.read_bytes().decode('utf-8')
  except UnicodeDecodeError as error:
    raise ManifestError(f'{NAME} is damaged') from error
  *lines, rest = text.split('\n')
  digests = {}
  for number, line in enumerate(lines, start=1):
    match = _LINE.fullmatch(line)
    if match is None or match[2] in digests:
      raise ManifestError(f'{NAME} is damaged at line {number}')
    pure = PurePosixPath(match[2])
    if pure.is_absolute() or '..' in pure.parts:
      raise ManifestError(f'{NAME} names {match[2]!r}, outside of the directory')
    digests[match[2]] = match[1]
  if rest or not digests:
    raise ManifestError(f'{NAME} is damaged at its end' if rest else f'{NAME} is empty')
  return digests


def _digest(path: Path) -> str:
  with open(path, 'rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
