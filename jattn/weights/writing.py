"""Files that appear whole or not at all."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from jattn.weights.errors import WeightsError


@contextmanager
def replacing(files: Sequence[Path], *, overwrite: bool) -> Iterator[list[Path]]:
  """Paths beside ``files`` to write to, which take their places in order when the block ends.

  Whatever goes wrong before, what was there stays, and nothing else is left behind. A link is
  replaced, not what it points to.

  Raises:
    WeightsError: one of the files is there and ``overwrite`` is not set, or is a folder, or it
      cannot be written.
  """
  for file in files:
    if file.is_dir() and not file.is_symlink():
      raise WeightsError(f'{file}: is a folder')
    if os.path.lexists(file) and not overwrite:
      raise WeightsError(f'{file}: is there already; overwrite=True (--overwrite True) replaces it')
  mark = secrets.token_hex(4)
  drafts = [file.with_name(f'.{file.name}.{mark}') for file in files]
  made = []
  try:
    for parent in _missing(files[0].parent):
      parent.mkdir()
      made.append(parent)
    for draft in drafts:
      draft.touch(exist_ok=False)
    modes = [draft.stat().st_mode for draft in drafts]
    yield drafts
    for draft, mode in zip(drafts, modes, strict=True):
      draft.chmod(mode)  # as the umask has it, also where a library made the file anew
      _sync(draft)
    for draft, file in zip(drafts, files, strict=True):
      os.replace(draft, file)
    made.clear()
    _sync(files[0].parent)
  except OSError as error:
    raise WeightsError(f'{files[0].parent}: cannot be written: {error}') from error
  finally:
    for draft in drafts:
      with suppress(OSError):
        draft.unlink(missing_ok=True)
    for parent in reversed(made):
      with suppress(OSError):
        parent.rmdir()


def _missing(folder: Path) -> list[Path]:
  """The folder and those above it that are not there, outermost first."""
  chain = [folder, *folder.parents]
  return [path for path in reversed(chain) if not path.is_dir()]


def _sync(path: Path) -> None:
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)
