"""What several processes that train together tell each other; with one process, nothing.

Each process runs the same program on its own devices (``jax.distributed.initialize``); every one
must call these functions at the same place.
"""

from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

Tree = TypeVar('Tree')


def tell_all(number: int) -> list[int]:
  """The number of every process, in their order.

  >>> tell_all(3)
  [3]
  """
  if jax.process_count() == 1:
    return [number]
  told = multihost_utils.process_allgather(np.asarray(number, np.int32))
  return [int(one) for one in np.ravel(told)]


def whole(state: Tree) -> Tree:
  """Arrays that lie on the devices of all processes, whole on the host of each.

  With one process they stay where they are.
  """
  if jax.process_count() == 1:
    return state
  return multihost_utils.process_allgather(state, tiled=True)
