"""How a layer of ours is stored in timm's naming: what a mechanism says about each of its layers.

A module that timm has too carries ``timm_names``, a mapping from the path of one of its layers
(``'reduce'``, ``'mlp/expand'``) to one of the classes here, which say what the layer is called
there and how its numbers lie. ``jattn.weights`` reads the mapping in both directions.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import ClassVar

import numpy as np


@dataclasses.dataclass(frozen=True)
class Linear:
  """A dense layer there: weight [out, in]. ``part`` of ``parts`` equal pieces of its rows.

  Attributes:
    name: what the layer is called.
    part: which piece of a packed layer (0 is the first).
    parts: how many equal pieces the packed layer has.
    resizable: our axes, never the last, along which lie positions of the grid it was trained at,
      which the backbone resizes when it is applied: a file may have another number of them.
  """

  name: str
  part: int = 0
  parts: int = 1
  resizable: tuple[int, ...] = dataclasses.field(default=(), kw_only=True, repr=False)
  axis: ClassVar[int] = 0  # of the tensor there, along which its pieces lie

  def tensor(self, leaf: str) -> str:
    """The name of the tensor that holds our leaf ('kernel' or 'bias')."""
    return f'{self.name}.{"weight" if leaf == "kernel" else leaf}'

  def ours(self, leaf: str, value: np.ndarray) -> np.ndarray:
    """Their tensor, as our leaf."""
    value = np.split(value, self.parts)[self.part]
    return self._transpose(value) if leaf == 'kernel' else value

  def theirs(self, leaf: str, value: np.ndarray) -> np.ndarray:
    """Our leaf, as their tensor (or as a piece of it)."""
    return self._untranspose(value) if leaf == 'kernel' else value

  def shaped(self, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """What ``ours`` gave, where only the leaf that is to hold it can tell the shape."""
    del shape
    return value

  def _transpose(self, value: np.ndarray) -> np.ndarray:
    return value.T

  def _untranspose(self, value: np.ndarray) -> np.ndarray:
    return value.T


@dataclasses.dataclass(frozen=True)
class Conv(Linear):
  """A convolution there, [out, in, *window], and one here, [*window, in, out]."""

  def _transpose(self, value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (0, 1), (-1, -2))

  def _untranspose(self, value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (-1, -2), (0, 1))


@dataclasses.dataclass(frozen=True)
class Conv1x1(Linear):
  """A 1x1 convolution there, [out, in, 1, 1], and a dense layer here, [in, out]."""

  def _transpose(self, value: np.ndarray) -> np.ndarray:
    return value.reshape(value.shape[:2]).T

  def _untranspose(self, value: np.ndarray) -> np.ndarray:
    return value.T[:, :, None, None]


@dataclasses.dataclass(frozen=True)
class Norm(Linear):
  """A norm: scale, bias, and the running mean and variance of batch norm."""

  def tensor(self, leaf: str) -> str:
    names = {'scale': 'weight', 'bias': 'bias', 'mean': 'running_mean', 'var': 'running_var'}
    return f'{self.name}.{names[leaf]}'


@dataclasses.dataclass(frozen=True)
class Array(Linear):
  """A bare parameter, stored alike here and there but for the order of its axes.

  Attributes:
    axes: our axes, as their axes are numbered; None leaves the order.
    shape: the shape there, where it has axes of length one that ours lacks; None is ours.
  """

  axes: tuple[int, ...] | None = None
  shape: tuple[int, ...] | None = None

  def tensor(self, leaf: str) -> str:
    del leaf
    return self.name

  def ours(self, leaf: str, value: np.ndarray) -> np.ndarray:
    del leaf
    value = np.split(value, self.parts)[self.part]
    value = value.squeeze() if self.shape is not None else value
    return value if self.axes is None else value.transpose(self.axes)

  def theirs(self, leaf: str, value: np.ndarray) -> np.ndarray:
    del leaf
    value = value if self.axes is None else value.transpose(np.argsort(self.axes))
    return value if self.shape is None else value.reshape(self.shape)


@dataclasses.dataclass(frozen=True)
class RelativeTable(Array):
  """A table of relative positions: rows there, [(2H-1)(2W-1), M], a grid here, [2H-1, 2W-1, M].

  Like timm's own loading, a table of another size than ours is taken to be of a square grid.
  """

  resizable: tuple[int, ...] = dataclasses.field(default=(0, 1), kw_only=True, repr=False)

  def shaped(self, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if value.size == math.prod(shape):
      return value.reshape(shape)
    side = math.isqrt(len(value))
    return value.reshape(side, side, -1) if side**2 == len(value) else value

  def theirs(self, leaf: str, value: np.ndarray) -> np.ndarray:
    del leaf
    return value.reshape(-1, value.shape[-1])


@dataclasses.dataclass(frozen=True)
class Positions(Linear):
  """Vectors of positions there, [1, N, C]: those from ``start`` to ``stop``, of any shape here.

  Those of a grid, [H, W, C] here, lie there row by row; that of a class token is [C] here. A grid
  that a file has of another size is taken to be square.

  Attributes:
    start: the first of them.
    stop: the one after the last; None is the end.

  >>> packed = np.arange(10).reshape(1, 5, 2)
  >>> token = Positions('pos_embed', 0, 2, stop=1)
  >>> grid = Positions('pos_embed', 1, 2, start=1)
  >>> a = token.shaped(token.ours('token', packed), (2,))
  >>> b = grid.shaped(grid.ours('grid', packed), (2, 2, 2))
  >>> a.tolist(), b.tolist()
  ([0, 1], [[[2, 3], [4, 5]], [[6, 7], [8, 9]]])
  >>> back = np.concatenate([token.theirs('token', a), grid.theirs('grid', b)], axis=token.axis)
  >>> np.array_equal(back, packed)
  True
  """

  start: int = 0
  stop: int | None = None
  resizable: tuple[int, ...] = dataclasses.field(default=(0, 1), kw_only=True, repr=False)
  axis: ClassVar[int] = 1

  def tensor(self, leaf: str) -> str:
    del leaf
    return self.name

  def ours(self, leaf: str, value: np.ndarray) -> np.ndarray:
    del leaf
    return value[:, self.start : self.stop]

  def theirs(self, leaf: str, value: np.ndarray) -> np.ndarray:
    del leaf
    return value.reshape(1, -1, value.shape[-1])

  def shaped(self, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if value.size == math.prod(shape) and value.shape[-1] == shape[-1]:
      return value.reshape(shape)
    side = math.isqrt(value.shape[1])
    grid = len(shape) == 3 and side**2 == value.shape[1]
    return value.reshape(side, side, -1) if grid else value[0]


@dataclasses.dataclass(frozen=True)
class Linen(Linear):
  """A layer in a checkpoint of another Linen module (big_vision's): leaves as here, with slashes.

  Attributes:
    heads: M, where the heads have an axis of their own there; 0 where they have not.
    inputs: whether it is the kernel's input that consists of heads, [M, D, C], not its output,
      [C, M, D] (and [M, D] of the bias).
    stacked: whether all blocks lie along a first axis there; ``part`` is which block.

  >>> query, out = Linen('query', heads=2), Linen('out', heads=2, inputs=True)
  >>> query.tensor('kernel'), query.theirs('kernel', np.zeros((6, 8))).shape
  ('query/kernel', (6, 2, 4))
  >>> out.theirs('kernel', np.zeros((8, 6))).shape, out.theirs('bias', np.zeros(6)).shape
  ((2, 4, 6), (6,))
  >>> Linen('blocks/scale', 1, 3, stacked=True).ours('scale', np.array([[5, 5], [6, 7], [8, 8]]))
  array([6, 7])
  """

  heads: int = 0
  inputs: bool = False
  stacked: bool = False

  def tensor(self, leaf: str) -> str:
    return f'{self.name}/{leaf}'

  def ours(self, leaf: str, value: np.ndarray) -> np.ndarray:
    value = value[self.part] if self.stacked else value
    if self.heads and self.inputs and leaf == 'kernel':
      return value.reshape(-1, value.shape[-1])
    if self.heads and not self.inputs:
      return value.reshape(*value.shape[:-2], -1)
    return value

  def theirs(self, leaf: str, value: np.ndarray) -> np.ndarray:
    if self.heads and self.inputs and leaf == 'kernel':
      value = value.reshape(self.heads, -1, value.shape[-1])
    elif self.heads and not self.inputs:
      value = value.reshape(*value.shape[:-1], self.heads, -1)
    return value[None] if self.stacked else value


Layout = Linear
Layouts = Mapping[str, Layout]


def prefixed(names: Layouts, *, path: str = '', name: str = '') -> dict[str, Layout]:
  """The same layers as parts of something larger.

  Args:
    names: path of a layer here -> how it is stored there.
    path: goes before every path here, with its slash ('backbone/').
    name: goes before every name there, with its dot ('layer1.0.').

  >>> prefixed({'logits': Linear('fc')}, path='head/', name='model.')
  {'head/logits': Linear(name='model.fc', part=0, parts=1)}
  """
  return {
    path + layer: dataclasses.replace(layout, name=name + layout.name)
    for layer, layout in names.items()
  }
