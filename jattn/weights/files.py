"""Weights out of a file: safetensors in timm's naming or ours, and .npz in big_vision's."""

import os
from collections.abc import Mapping
from pathlib import Path

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from jattn.weights import big_vision, contents, npz, safetensors
from jattn.weights.errors import WeightsError
from jattn.weights.naming import Naming, covers, own_naming, take, tensor_names, timm_naming

HEAD = 'params/head/logits/'


def load_weights(
  path: str | os.PathLike[str],
  model: nn.Module,
  *,
  variables: Mapping | None = None,
  image_size: int | tuple[int, int] | None = None,
  reset_head: bool = False,
  key: jax.Array | None = None,
) -> dict:
  """Variables of ``model`` that hold the numbers of a file, which is recognised by its content.

  A ``.safetensors`` file holds them under timm's names or, as ``save_weights`` writes models that
  timm has not, under ours; an ``.npz`` file under those of big_vision or AugReg. Nothing is ever
  unpickled. Numbers of float16, bfloat16, float32 or float64 become those of the model's type,
  float32 unless ``variables`` say otherwise. Positions may be of another grid than the model's:
  they are stored as they were trained, and the backbone resizes them when it is applied.

  Args:
    path: a file, or a folder with ``model.safetensors``.
    model: a ``Classifier``; with ``variables`` any module that carries ``timm_names``.
    variables: variables of the model, or their shapes from ``jax.eval_shape``: what is wanted.
      None asks the model.
    image_size: side or (H, W), in pixels, of the images that it was trained on, where the file
      cannot tell (a grid of positions that is not square); None is the model's own, or 224.
    reset_head: whether the last layer starts anew, as the model starts it, whatever the file has:
      for other classes than it was trained on.
    key: for ``reset_head``.

  Raises:
    WeightsError: the file is missing, damaged, hostile or of another format, or tensors are
      missing, left over or do not fit; all are named, and nothing is loaded.
    ValueError: ``reset_head`` without a key, or with a model that has no such layer.
  """
  if reset_head and key is None:
    raise ValueError(f'{reset_head=} needs a key: the new last layer starts at random')
  file = contents.find(path)
  size = _sides(model, image_size)
  wanted = _flat(_shapes(model, size) if variables is None else variables)
  fresh = [path for path in wanted if reset_head and path.startswith(HEAD)]
  if reset_head and not fresh:
    raise ValueError(f'{reset_head=}: {type(model).__name__} has no layer {HEAD!r}')
  try:
    archive, naming, prefix = _opened(file, model, wanted)
    kept = {path: leaf for path, leaf in wanted.items() if path not in fresh}
    tensors = archive.read(tensor_names(naming, kept))
    # Beside the weights may lie the state of an optimizer, or another tower.
    names = {name for name in archive.names if name.startswith(prefix)}
    names -= tensor_names(naming, fresh)
    taken, faults = take(naming, tensors, kept, names=sorted(names))
  except WeightsError as error:
    raise error if str(file) in str(error) else WeightsError(f'{file}: {error}') from None
  if faults:
    hint = '' if reset_head else _head_hint(naming, tensors, wanted)
    told = '; '.join(faults)
    raise WeightsError(f'{file}: weights do not fit {type(model).__name__}: {told}{hint}')
  if fresh:
    taken |= _start(key, model, size, {path: wanted[path] for path in fresh})
  return flax.traverse_util.unflatten_dict({path: taken[path] for path in wanted}, sep='/')


def _opened(
  file: Path, model: nn.Module, wanted: Mapping
) -> tuple[safetensors.Archive | npz.Archive, Naming, str]:
  """The file, what each leaf is called in it, and how the names of all weights begin."""
  if contents.kind_of(file) == 'npz':
    archive = npz.Archive(file)
    return archive, *big_vision.choose(model, wanted, archive.names)
  archive = safetensors.Archive(file)
  naming = own_naming(model)
  if not any(name in wanted for name in archive.names) and getattr(model, 'timm_names', None):
    timm = timm_naming(model)
    naming = timm if covers(timm, wanted) else naming
  return archive, naming, ''


def _sides(model: nn.Module, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
  size = image_size or getattr(model, 'image_size', None) or 224
  return (size, size) if isinstance(size, int) else size


def _shapes(model: nn.Module, size: tuple[int, int]) -> Mapping:
  images = jax.ShapeDtypeStruct((1, *size, getattr(model, 'channels', 3)), jnp.float32)
  return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)


def _start(key: jax.Array, model: nn.Module, size: tuple[int, int], leaves: Mapping) -> dict:
  """Only these leaves of a model that starts; under jit nothing else is computed."""

  def start(key: jax.Array) -> dict:
    images = jnp.zeros((1, *size, getattr(model, 'channels', 3)))
    variables = _flat(model.init(key, images, train=False))
    return {path: variables[path].astype(leaf.dtype) for path, leaf in leaves.items()}

  return jax.jit(start)(key)


def _head_hint(naming: Naming, tensors: Mapping, wanted: Mapping) -> str:
  """What to do where the last layer is for other classes, or is not there; otherwise nothing."""
  kernel = wanted.get(f'{HEAD}kernel')
  if kernel is None:
    return ''
  layout, leaf = naming(f'{HEAD}kernel')
  tensor = tensors.get(layout.tensor(leaf))
  if not tensors or (tensor is not None and tensor.ndim != 2):
    return ''
  if tensor is None:
    told = 'The file has no last layer'
  else:
    classes = layout.ours(leaf, tensor).shape[-1]
    if classes == kernel.shape[-1]:
      return ''
    told = f'The file is for {classes} classes and the model for {kernel.shape[-1]}'
  return f". {told}: reset_head=True with a key starts the model's own last layer"


def _flat(variables: Mapping) -> dict:
  return flax.traverse_util.flatten_dict(dict(variables), sep='/')
