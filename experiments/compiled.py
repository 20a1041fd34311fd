"""Compiled programs kept between commands, so that the second run of one starts at once."""

import hashlib
import os
import pathlib
import platform
from collections.abc import MutableMapping

# Below this many seconds of compiling, keeping a program costs about what it saves.
LEAST_SECONDS = '0.1'


def keep_compiled(environment: MutableMapping[str, str]) -> None:
  """Tells JAX, before it is imported, to keep what it compiles in a private directory.

  $XDG_CACHE_HOME/jattn/compiled, by default ~/.cache/jattn/compiled, one part for each kind of
  processor: code for another may not run. Whoever can write there can run code as the user, so a
  directory that others could write is not used. What the user told JAX stands;
  JAX_ENABLE_COMPILATION_CACHE=false turns it off, and all of it may be deleted at any time.

  Args:
    environment: ``os.environ``.
  """
  if environment.get('JAX_COMPILATION_CACHE_DIR'):
    return
  root = pathlib.Path(environment.get('XDG_CACHE_HOME') or '~/.cache').expanduser()
  directory = root / 'jattn' / 'compiled' / _processor()
  try:
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = directory.stat()
  except (OSError, RuntimeError):  # not writable, or no home: then everything is compiled again
    return
  if about.st_mode & 0o022 or (hasattr(os, 'getuid') and about.st_uid != os.getuid()):
    return
  environment['JAX_COMPILATION_CACHE_DIR'] = str(directory)
  environment.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', LEAST_SECONDS)


def _processor() -> str:
  """A name for what the processor can do."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    lines = []
  flags = sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))})
  facts = '\n'.join([platform.machine(), platform.processor(), *flags])
  return hashlib.sha256(facts.encode()).hexdigest()[:16]
