"""Weights under timm's names, in and out."""

from collections.abc import Mapping

import flax.linen as nn
import flax.traverse_util
import jax
import numpy as np

from jattn.layouts import Layout


def from_timm(module: nn.Module, tensors: Mapping[str, np.ndarray], variables: Mapping) -> dict:
  """Variables of ``module`` that hold the numbers of timm's ``tensors``.

  Args:
    module: carries ``timm_names``.
    tensors: timm's name -> numbers, as its ``state_dict`` has them.
    variables: variables of ``module``, or their shapes from ``jax.eval_shape``: what is wanted.

  Returns:
    A copy of ``variables`` with every leaf taken from ``tensors``, in the type of ``variables``.

  Raises:
    ValueError: timm has no such module, or tensors are missing, left over or of another shape; all
      are named.
  """
  wanted = flax.traverse_util.flatten_dict(dict(variables), sep='/')
  taken, used, faults = {}, set(), []
  for path, leaf in wanted.items():
    layout, last = _layout(module, path)
    name = layout.tensor(last)
    used.add(name)
    if name not in tensors:
      faults.append(f'missing {name!r} for {path}')
      continue
    value = layout.ours(last, np.asarray(tensors[name]))
    if value.shape != leaf.shape:
      faults.append(f'{name!r} gives {value.shape} where {path} is {leaf.shape}')
      continue
    taken[path] = jax.numpy.asarray(value, leaf.dtype)
  ignored = ('num_batches_tracked', 'relative_position_index')
  faults += [f'left over {n!r}' for n in tensors if n not in used and not n.endswith(ignored)]
  if faults:
    raise ValueError(f'weights do not fit {type(module).__name__}: ' + '; '.join(faults))
  return flax.traverse_util.unflatten_dict(taken, sep='/')


def to_timm(module: nn.Module, variables: Mapping) -> dict[str, np.ndarray]:
  """The variables of ``module`` under timm's names, as its ``load_state_dict`` takes them.

  Raises:
    ValueError: timm has no such module.
  """
  pieces: dict[str, dict[int, np.ndarray]] = {}
  for path, leaf in flax.traverse_util.flatten_dict(dict(variables), sep='/').items():
    layout, last = _layout(module, path)
    value = layout.theirs(last, np.asarray(leaf))
    pieces.setdefault(layout.tensor(last), {})[layout.part] = value
  return {
    name: np.concatenate([parts[index] for index in sorted(parts)])
    if len(parts) > 1
    else next(iter(parts.values()))
    for name, parts in pieces.items()
  }


def _layout(module: nn.Module, path: str) -> tuple[Layout, str]:
  """The layout of the layer at 'params/a/b/kernel', and its last part 'kernel'."""
  names = getattr(module, 'timm_names', None)
  if names is None:
    raise ValueError(f'timm has no {type(module).__name__}')
  _, layer = path.split('/', 1)
  if layer in names:
    return names[layer], layer
  layer, _, last = layer.rpartition('/')
  if layer not in names:
    raise ValueError(f'{type(module).__name__}.timm_names says nothing of {layer or last!r}')
  return names[layer], last
