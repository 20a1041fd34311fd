"""How a layer of ours is stored in timm's naming: what a mechanism says about each of its layers.

A module that timm has too carries ``timm_names``, a mapping from the path of one of its layers
(``'reduce'``, ``'mlp/expand'``) to one of the classes here, which say what the layer is called
there and how its numbers lie. ``jattn.weights`` reads the mapping in both directions.
"""

import dataclasses
import math
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Linear:
  """A dense layer there: weight [out, in]. ``part`` of ``parts`` equal pieces of its rows.

  Attributes:
    name: what the layer is called.
    part: which piece of a packed layer (0 is the first).
    parts: how many equal pieces the packed layer has.
  """

  name: str
  part: int = 0
  parts: int = 1

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
  """A table of relative positions: rows there, [(2S-1)^2, M], and a grid here, [2S-1, 2S-1, M].

  Like timm's own loading it takes the grid of a table from there to be square.
  """

  def ours(self, leaf: str, value: np.ndarray) -> np.ndarray:
    del leaf
    side = math.isqrt(len(value))
    return value.reshape(side, -1, *value.shape[1:]) if side**2 == len(value) else value

  def theirs(self, leaf: str, value: np.ndarray) -> np.ndarray:
    del leaf
    return value.reshape(-1, *value.shape[2:])


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
