"""timm's networks as a reference: built with drawn weights, run, and their maps caught in passing.

Needs torch and timm (``pip install torch==2.13.0 timm==1.0.31 --no-deps``, with safetensors and
huggingface_hub), which jattn itself does not: ``tests.fixtures.make_timm_models`` and
``experiments.compare_timm`` are the only users.
"""

import importlib
import importlib.machinery
import operator
import sys
import types
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jattn.types import in_order


class _Empty(type):
  """A class of which every attribute is such a class."""

  def __getattr__(cls, name: str):
    if name.startswith('__'):
      raise AttributeError(name)
    return _Empty(name, (), {})


class _Anything(types.ModuleType):
  """A module of which every attribute is an empty class."""

  __getattr__ = _Empty.__getattr__


def stand_in_for_torchvision() -> None:
  """Puts empty modules where timm looks for torchvision, which has no part in its networks."""
  parts = ('', '.transforms', '.transforms.functional', '.ops', '.ops.misc', '.datasets')
  for part in (*parts, '.models', '.models.feature_extraction'):
    module = _Anything(f'torchvision{part}')
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(f'torchvision{part}', None)
    sys.modules[f'torchvision{part}'] = module
    above, _, last = f'torchvision{part}'.rpartition('.')
    if above:
      setattr(sys.modules[above], last, module)


def create(name: str, arguments: Mapping[str, Any]) -> Any:
  """timm's model called ``name``; see ``resolved`` for how arguments name timm's classes."""
  import timm

  timm.layers.set_fused_attn(False)  # so that the maps exist
  return timm.create_model(name, **{key: resolved(value) for key, value in arguments.items()})


def resolved(value: Any) -> Any:
  """'torch.nn.X' or 'timm.layers.X' as that class, ('timm....X', {...}) as an instance of it."""
  if isinstance(value, str) and value.startswith(('torch.', 'timm.')):
    root, _, rest = value.partition('.')
    importlib.import_module(value.rpartition('.')[0])
    return operator.attrgetter(rest)(importlib.import_module(root))
  if isinstance(value, tuple | list):
    parts = [resolved(part) for part in value]
    if len(parts) == 2 and isinstance(parts[0], type) and isinstance(parts[1], dict):
      return parts[0](**{key: resolved(part) for key, part in parts[1].items()})
    return type(value)(parts)
  return value


def drawn_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
  """Weights by name, away from where any layer starts; a function of the names and shapes alone.

  Products keep about the size of what they are given: kernels are normal with variance one over
  the fan-in, scales lie around one, variances at one half and above.
  """
  state = {}
  for name, shape in shapes.items():
    value = np.random.default_rng(zlib.crc32(name.encode())).normal(size=shape)
    last = name.rpartition('.')[2]
    if last == 'running_var':
      value = 0.5 + np.abs(value)
    elif len(shape) == 1 or any(part in name for part in ('pos_embed', 'rel_pos', 'cls_token')):
      value = (1.0 if last in ('weight', 'gamma') else 0.0) + 0.2 * value
    elif len(shape) > 1:
      value = value / np.sqrt(max(value[0].size, 1))
    state[name] = value.astype(np.float32)
  return state


def shapes_of(module: Any) -> dict[str, tuple[int, ...]]:
  """The tensors of a timm model that hold numbers to learn or to estimate."""
  return {
    name: tuple(value.shape)
    for name, value in module.state_dict().items()
    if value.dtype.is_floating_point
  }


def load(module: Any, state: Mapping[str, np.ndarray]) -> None:
  """Puts every tensor of ``state`` into a timm model."""
  import torch

  tensors = {name: torch.from_numpy(np.asarray(value)) for name, value in state.items()}
  missing, left_over = module.load_state_dict(tensors, strict=False)
  kept = ('num_batches_tracked', 'relative_position_index')
  faults = [name for name in missing if not name.endswith(kept)] + left_over
  if faults:
    raise ValueError(f'tensors that do not fit: {faults}')


def resize_state(module: Any, state: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
  """``state`` as timm itself fits it to a model of another image size; None where it cannot."""
  import torch

  family = sys.modules[type(module).__module__]
  if not hasattr(family, 'checkpoint_filter_fn'):
    return None
  tensors = {name: torch.from_numpy(value.copy()) for name, value in state.items()}
  fitted = family.checkpoint_filter_fn(tensors, module)
  return {name: value.numpy() for name, value in fitted.items() if name in state}


def run(module: Any, images: np.ndarray, *, train: bool) -> tuple[Any, list[np.ndarray]]:
  """Logits (a tensor with its graph), and every softmax and sigmoid on the way, in order.

  Args:
    module: timm's model; its own type decides on the precision.
    images: [B, H, W, 3].
    train: whether batch norms use and update the statistics of the batch.
  """
  import torch
  from torch.utils._python_dispatch import TorchDispatchMode

  caught = []

  class Catch(TorchDispatchMode):
    def __torch_dispatch__(self, function, kinds, args=(), kwargs=None):
      out = function(*args, **(kwargs or {}))
      if function.overloadpacket.__name__ in ('_softmax', 'sigmoid', 'sigmoid_'):
        caught.append(out.detach().float().numpy().copy())
      return out

  module.train(train)
  weight = next(module.parameters())
  given = torch.from_numpy(images).to(weight.dtype).permute(0, 3, 1, 2).contiguous()
  with Catch():
    logits = module(given)
  return logits, caught


def arrange(caught: list[np.ndarray], maps: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """timm's softmaxes and sigmoids in the shape of our maps, paired in the order of the layers.

  ``maps`` are ours (arrays or shapes). What timm computes in between without its being a map (the
  softmax of a lambda layer's keys) is of another size and passed over.

  Raises:
    ValueError: a map has no counterpart, or one of a map's size is left over.
  """
  rest, found = list(caught), {}
  for name, ours in in_order(maps).items():
    shape = ours.weights.shape
    size = int(np.prod(shape))
    while rest and rest[0].size != size:
      rest.pop(0)
    if not rest:
      raise ValueError(f'timm computes nothing of the size of {name}, {shape}')
    theirs = rest.pop(0)
    if ours.keys is not None and theirs.ndim == 4 and theirs.shape[1:3] != shape[1:3]:
      theirs = _out_of_blocks(theirs, shape, ours.grid)
    found[name] = theirs.reshape(shape)
  if any(left.size == np.prod(ours.weights.shape) for left in rest for ours in maps.values()):
    raise ValueError('timm computes more maps than ours are')
  return found


def _out_of_blocks(theirs: np.ndarray, shape: tuple[int, ...], grid: tuple[int, int]) -> np.ndarray:
  """[B M, blocks, queries of a block, K] -> [B, M, Q, K], queries row by row over the grid."""
  batch, heads, queries, keys = shape
  side = round(theirs.shape[2] ** 0.5)
  width = round((queries * grid[1] / grid[0]) ** 0.5)
  height = queries // width
  blocks = (height // side, width // side)
  split = theirs.reshape(batch, heads, *blocks, side, side, keys)
  return split.transpose(0, 1, 2, 4, 3, 5, 6)
