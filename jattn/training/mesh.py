"""Devices as a mesh, and where batches and states lie on it."""

from collections.abc import Sequence
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jattn.types import Batch

AXES = ('data', 'fsdp')
Tree = TypeVar('Tree')


def make_mesh(*, devices: Sequence[jax.Device] | None = None, fsdp: int = 1) -> Mesh:
  """Returns the devices as a mesh of ``data`` x ``fsdp``.

  A batch is split over both axes. Parameters are copied along ``data`` and split along ``fsdp``
  (fully sharded data parallelism: Rajbhandari et al. 2019, arXiv 1910.02054); with ``fsdp=1`` every
  device holds them whole.

  Args:
    devices: which devices; None is all of them.
    fsdp: over how many devices the parameters are split.

  Raises:
    ValueError: ``fsdp`` does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if fsdp < 1 or len(devices) % fsdp:
    raise ValueError(f'{fsdp=} must divide the number of devices, {len(devices)}')
  return Mesh(np.asarray(devices).reshape(-1, fsdp), AXES)


def batch_sharding(mesh: Mesh, *, leading: int = 0) -> NamedSharding:
  """How the batch axis is split: over every device. ``leading`` axes before it are not."""
  return NamedSharding(mesh, PartitionSpec(*[None] * leading, AXES))


def replicated(mesh: Mesh) -> NamedSharding:
  """A whole copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def state_sharding(tree: Tree, mesh: Mesh, *, smallest: int = 2**14) -> Tree:
  """How each array of a state is split, a function of its shape alone.

  The largest axis that the ``fsdp`` axis divides is split over it (the last of equals); arrays with
  fewer than ``smallest`` elements, and all arrays when ``fsdp`` is one, are copied.

  Returns:
    A tree of ``NamedSharding`` of the structure of ``tree``.
  """
  ways = mesh.shape['fsdp']

  def place(leaf) -> NamedSharding:
    shape = np.shape(leaf)
    candidates = [axis for axis, size in enumerate(shape) if size % ways == 0]
    if ways == 1 or not candidates or np.prod(shape) < smallest:
      return replicated(mesh)
    split = max(candidates, key=lambda axis: (shape[axis], axis))
    return NamedSharding(
      mesh, PartitionSpec(*['fsdp' if a == split else None for a in range(len(shape))])
    )

  return jax.tree.map(place, tree)


def place_batch(batch: Batch, mesh: Mesh, *, leading: int = 0) -> Batch:
  """Puts a host batch on the mesh; with several processes each gives its own slice.

  Args:
    batch: host arrays; with ``leading=1`` a stack of batches, [S, B, ...].
    mesh: the devices.
    leading: how many axes stand before the batch axis.

  Raises:
    ValueError: the number of devices does not divide the batch.
  """
  rows = batch.labels.shape[leading] * jax.process_count()
  if rows % mesh.size:
    raise ValueError(f'a batch of {rows} cannot be split over {mesh.size} devices evenly')
  sharding = batch_sharding(mesh, leading=leading)
  if jax.process_count() == 1:
    return jax.device_put(batch, sharding)
  return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)
