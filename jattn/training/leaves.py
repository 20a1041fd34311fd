"""The leaves of a tree as they are stored beside it: path, shape and dtype of each."""

from typing import Any

import jax
import numpy as np

Leaves = dict[str, list]


def describe(tree: Any) -> Leaves:
  """The shape and dtype of every leaf by its path: `{'params/head/kernel': [[64, 10], 'float32']}`.

  It is JSON. Raises ValueError for what cannot be stored: a leaf that is neither an array nor a
  number, an array of size zero (Orbax refuses it), and two leaves that Orbax would store as one, as
  it joins the keys of a path by dots.
  """
  leaves, stored = {}, {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if not hasattr(leaf, 'dtype') and not isinstance(leaf, bool | int | float | complex):
      raise ValueError(f'{name} is of type {type(leaf).__name__}: not an array and not a number')
    if (other := stored.setdefault(name.replace('/', '.'), name)) != name:
      raise ValueError(f'{other} and {name} would be stored as one: rename a key with a dot')
    shape = list(np.shape(leaf))
    if 0 in shape:
      raise ValueError(f'{name} has shape {shape}: an array of size zero cannot be saved')
    leaves[name] = [shape, str(getattr(leaf, 'dtype', type(leaf).__name__))]
  return leaves


def differences(saved: Leaves, wanted: Leaves) -> list[str]:
  """One line for each leaf that is not the same in both, sorted by path."""

  def show(leaf: list | None) -> str:
    return 'nothing' if leaf is None else f'{leaf[1]}{leaf[0]}'

  return [
    f'  {name}: the checkpoint has {show(saved.get(name))}, the target {show(wanted.get(name))}'
    for name in sorted(saved.keys() | wanted.keys())
    if saved.get(name) != wanted.get(name)
  ]


def abstract(leaf: Any) -> Any:
  """Shape, dtype and sharding of an array (the first local device where it names none)."""
  if not isinstance(leaf, jax.Array | jax.ShapeDtypeStruct):
    return np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
  # Without a sharding Orbax would look for the devices of the run that saved.
  sharding = leaf.sharding or jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
