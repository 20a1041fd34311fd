"""Memory that one step frees kept for the next, which then does not wait for it again."""

import ctypes
from collections.abc import Mapping

# As <malloc.h> numbers them.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8
_CHOSEN_BY_USER = (
  'GLIBC_TUNABLES',
  'MALLOC_ARENA_MAX',
  'MALLOC_MMAP_MAX_',
  'MALLOC_MMAP_THRESHOLD_',
  'MALLOC_TOP_PAD_',
  'MALLOC_TRIM_THRESHOLD_',
)


def keep_memory(environment: Mapping[str, str]) -> bool:
  """Tells glibc not to give freed memory back to the system: blocks to 1 GiB, 2 GiB in all.

  On a CPU XLA asks for a step's arrays anew at each step. glibc maps blocks above 32 MiB for each
  and unmaps them when freed, and so each page of them is zeroed by the system again: on two cores
  700,000 page faults in 15 steps of the seed's classifier instead of 200,000, and a fifth of the
  time where PyTorch's steps came between. One arena, as only the main one can grow that far. What
  the user told glibc stands, as do other systems and other libraries.

  Args:
    environment: ``os.environ``.

  Returns:
    Whether glibc was told.
  """
  if any(environment.get(name) for name in _CHOSEN_BY_USER):
    return False
  try:
    tell = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):  # not glibc
    return False
  wanted = ((_ARENA_MAX, 1), (_MMAP_THRESHOLD, 2**30), (_TRIM_THRESHOLD, 2**31 - 1))
  return all(tell(name, value) == 1 for name, value in wanted)
