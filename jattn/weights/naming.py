"""Which tensor of a file holds which leaf of a model: under timm's names, big_vision's or ours."""

from collections.abc import Callable, Collection, Mapping

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from jattn.layouts import Array, Layout, Layouts
from jattn.weights.errors import WeightsError

# 'params/a/b/kernel' -> the layout of the layer 'a/b', and its leaf 'kernel'.
Naming = Callable[[str], tuple[Layout, str]]
# What timm only counts or derives.
_NO_WEIGHTS = ('num_batches_tracked', 'relative_position_index', 'attn_mask')


def from_timm(module: nn.Module, tensors: Mapping[str, np.ndarray], variables: Mapping) -> dict:
  """Variables of ``module`` that hold the numbers of timm's ``tensors``.

  Args:
    module: carries ``timm_names``.
    tensors: timm's name -> numbers, as its ``state_dict`` has them.
    variables: variables of ``module``, or their shapes from ``jax.eval_shape``: what is wanted.

  Returns:
    A copy of ``variables`` with every leaf taken from ``tensors``, in the type of ``variables``.

  Raises:
    WeightsError: timm has no such module, or tensors are missing, left over or of another shape;
      all are named.
  """
  taken, faults = take(timm_naming(module), tensors, _flat(variables), names=tensors)
  if faults:
    raise WeightsError(f'weights do not fit {type(module).__name__}: ' + '; '.join(faults))
  return flax.traverse_util.unflatten_dict(taken, sep='/')


def to_timm(module: nn.Module, variables: Mapping) -> dict[str, np.ndarray]:
  """The variables of ``module`` under timm's names, as its ``load_state_dict`` takes them.

  Raises:
    WeightsError: timm has no such module.
  """
  return give(timm_naming(module), _flat(variables))


def timm_naming(module: nn.Module) -> Naming:
  """Timm's names; WeightsError for a path where timm has no such module or layer."""
  names = getattr(module, 'timm_names', None)
  if names is not None:
    return naming_by(names, f'{type(module).__name__}.timm_names')

  def find(path: str) -> tuple[Layout, str]:
    raise WeightsError(f'timm has no {type(module).__name__}, and so no name for {path}')

  return find


def naming_by(names: Layouts, owner: str) -> Naming:
  """The naming that a mapping from layers to layouts says; it raises WeightsError for a path."""

  def find(path: str) -> tuple[Layout, str]:
    _, layer = path.split('/', 1)
    if layer in names:
      return names[layer], layer
    layer, _, last = layer.rpartition('/')
    if layer not in names:
      raise WeightsError(f'{owner} says nothing of {layer or last!r}')
    return names[layer], last

  return find


def own_naming(module: nn.Module) -> Naming:
  """Our own: a tensor is called like its leaf, 'params/backbone/conv_0/kernel', and lies alike."""
  names = naming_by(getattr(module, 'timm_names', None) or {}, '')
  tables = getattr(getattr(module, 'backbone', None), 'tables', {})

  def find(path: str) -> tuple[Layout, str]:
    try:
      layout, _ = names(path)
    except WeightsError:
      return Array(path, resizable=tables.get(path.removeprefix('params/backbone/'), ())), ''
    return Array(path, resizable=layout.resizable), ''

  return find


def covers(naming: Naming, paths: Collection[str]) -> bool:
  """Whether every leaf has a name there."""
  try:
    for path in paths:
      naming(path)
  except WeightsError:
    return False
  return True


def tensor_names(naming: Naming, paths: Collection[str]) -> set[str]:
  """Of the tensors that hold these leaves."""
  return {layout.tensor(leaf) for layout, leaf in map(naming, paths)}


def take(
  naming: Naming,
  tensors: Mapping[str, np.ndarray],
  wanted: Mapping[str, jax.ShapeDtypeStruct],
  *,
  names: Collection[str],
) -> tuple[dict[str, jax.Array], list[str]]:
  """Every wanted leaf, from ``tensors``; and in words what is missing, left over or does not fit.

  Args:
    naming: what each leaf is called there.
    tensors: name -> numbers.
    wanted: path of a leaf -> its shape and type.
    names: of all tensors that must be of use.
  """
  taken, used, faults = {}, set(), []
  for path, leaf in wanted.items():
    layout, last = naming(path)
    name = layout.tensor(last)
    used.add(name)
    if name not in tensors:
      faults.append(f'missing {name!r} for {path}')
      continue
    try:
      taken[path] = _fitted(layout, last, np.asarray(tensors[name]), path, leaf)
    except WeightsError as fault:
      faults.append(str(fault))
  faults += [f'left over {n!r}' for n in names if n not in used and not n.endswith(_NO_WEIGHTS)]
  return taken, faults


def give(naming: Naming, leaves: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """Every leaf under its name there, packed layers whole."""
  pieces: dict[str, dict[int, np.ndarray]] = {}
  axes: dict[str, int] = {}
  for path, leaf in leaves.items():
    layout, last = naming(path)
    value = layout.theirs(last, np.asarray(leaf))
    pieces.setdefault(layout.tensor(last), {})[layout.part] = value
    axes[layout.tensor(last)] = layout.axis
  return {
    name: np.concatenate([parts[index] for index in sorted(parts)], axis=axes[name])
    if len(parts) > 1
    else next(iter(parts.values()))
    for name, parts in pieces.items()
  }


def _fitted(
  layout: Layout, last: str, tensor: np.ndarray, path: str, leaf: jax.ShapeDtypeStruct
) -> jax.Array:
  """The leaf at ``path``; WeightsError where the tensor has another shape or kind of number."""
  name = layout.tensor(last)
  if jnp.issubdtype(leaf.dtype, jnp.floating) and not jnp.issubdtype(tensor.dtype, jnp.floating):
    raise WeightsError(f'{name!r} holds {tensor.dtype} where {path} is {leaf.dtype}')
  try:
    value = layout.shaped(layout.ours(last, tensor), leaf.shape)
  except (ValueError, IndexError):
    raise WeightsError(f'{name!r} is {tensor.shape}, which cannot be {path} {leaf.shape}') from None
  if value.shape != leaf.shape and not _resizable(layout, value.shape, leaf.shape):
    raise WeightsError(f'{name!r} gives {value.shape} where {path} is {leaf.shape}')
  try:
    with np.errstate(over='raise', under='ignore', invalid='ignore'):
      return jax.device_put(value.astype(leaf.dtype))
  except FloatingPointError:
    raise WeightsError(f'{name!r} holds numbers beyond the range of {leaf.dtype}') from None


def _resizable(layout: Layout, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
  """Whether only axes differ that hold positions, which are resized when the model is applied."""
  if len(shape) != len(wanted) or 0 in shape:
    return False
  return all(
    a == b or (axis in layout.resizable and axis < len(shape) - 1)
    for axis, (a, b) in enumerate(zip(shape, wanted, strict=True))
  )


def _flat(variables: Mapping) -> dict:
  return flax.traverse_util.flatten_dict(dict(variables), sep='/')
