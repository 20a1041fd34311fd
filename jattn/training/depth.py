"""How deep in a network each parameter lies, read from its path alone.

The paths are those that backbones promise: ``backbone/stage_S_block_I/...`` for blocks, anything
else of the backbone before them (the stem) or after them (a last norm), and what is outside of the
backbone after that (attention at the end, pooling, head).
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax

_BLOCK = re.compile(r'(?:insert_)?stage_(\d+)_block_(\d+)')
_BETWEEN = re.compile(r'(insert_)?(?:stage|downsample)_(\d+)')


@dataclasses.dataclass(frozen=True)
class Layers:
  """The layers of a network in order: the stem is 0, then every block, and the head is last.

  What reduces the resolution before a stage belongs to the stage's first block, a block inserted
  after a block or a stage to that one or its last. A last norm goes with the head (as BEiT has it;
  timm counts it to the last block), and so does a last convolution, ``last_...``; ``norm`` beside a
  ``conv`` is the stem's.

  Attributes:
    blocks: (stage, block) of every block, in order.
    norm_is_last: whether ``backbone/norm`` stands after the blocks.
  """

  blocks: tuple[tuple[int, int], ...]
  norm_is_last: bool

  @classmethod
  def of(cls, params: Mapping[str, Any]) -> 'Layers':
    """The layers of a network with these parameters (or shapes of them)."""
    names = params.get('backbone', {})
    matches = filter(None, map(_BLOCK.fullmatch, names))
    blocks = {(int(match[1]), int(match[2])) for match in matches}
    return cls(tuple(sorted(blocks)), 'conv' not in names)

  @property
  def last(self) -> int:
    """The number of the head."""
    return len(self.blocks) + 1

  def number(self, path: str) -> int:
    """The number of the layer that 'backbone/stage_0_block_1/conv_0/kernel' belongs to.

    >>> layers = Layers(((0, 0), (0, 1), (1, 0)), norm_is_last=True)
    >>> places = 'stem_conv/kernel stage_0_block_1/norm/scale downsample_1/kernel norm/scale'
    >>> [layers.number(f'backbone/{place}') for place in places.split()]
    [0, 2, 3, 4]
    >>> layers.number('head/logits/kernel')
    4
    """
    room, _, rest = path.partition('/')
    if room != 'backbone':
      return self.last
    name = rest.partition('/')[0]
    if match := _BLOCK.match(name):
      return self._of_block(int(match[1]), int(match[2]))
    if match := _BETWEEN.match(name):
      stage = int(match[2])
      inside = [block for block in self.blocks if block[0] == stage]
      return self._of_block(*(inside[-1] if match[1] else inside[0])) if inside else self.last
    after = name.startswith('last_') or (name == 'norm' and self.norm_is_last)
    return self.last if after else 0

  def through(self, place: str) -> int:
    """The number of the last layer of 'stem', 'stage_S', 'stage_S/block_I' or 'backbone'.

    Raises:
      ValueError: there is no such place; names those there are.
    """
    last_of = {'stem': 0}
    for number, (stage, block) in enumerate(self.blocks, start=1):
      last_of.pop(f'stage_{stage}', None)  # it stands after the last of its blocks
      last_of[f'stage_{stage}/block_{block}'] = last_of[f'stage_{stage}'] = number
    last_of['backbone'] = self.last
    if place not in last_of:
      raise ValueError(f'nothing is called {place!r} in this network; there are {list(last_of)}')
    return last_of[place]

  def _of_block(self, stage: int, block: int) -> int:
    return self.blocks.index((stage, block)) + 1


@dataclasses.dataclass(frozen=True)
class Frozen:
  """Which variables of a network are frozen: all up to and with a place.

  Attributes:
    layers: of the network.
    place: see ``Layers.through``.
  """

  layers: Layers
  place: str

  def __call__(self, path: str) -> bool:
    """Whether the variable or module at 'backbone/...' is frozen."""
    if self.place == 'backbone':
      return path.partition('/')[0] == 'backbone'
    return self.layers.number(path) <= self.layers.through(self.place)


def frozen_mask(params: Mapping[str, Any], place: str) -> Any:
  """A tree of the structure of ``params``: True where a parameter lies up to and in ``place``.

  Raises:
    ValueError: there is no such place; names those there are.
  """
  layers = Layers.of(params)
  layers.through(place)
  frozen = Frozen(layers, place)
  return _by_path(frozen, params)


def layer_scales(params: Mapping[str, Any], decay: float) -> Any:
  """A tree of the structure of ``params``: ``decay ** (last layer - layer)``, 1 for the head.

  Bao et al. 2021 (BEiT), arXiv 2106.08254; Clark et al. 2020, arXiv 2003.10555.

  Raises:
    ValueError: the parameters have no blocks, so that there is no order to go by.

  >>> params = {'backbone': {'stem': 0.0, 'stage_0_block_0': 0.0}, 'head': 0.0}
  >>> layer_scales(params, 0.5)
  {'backbone': {'stage_0_block_0': 0.5, 'stem': 0.25}, 'head': 1.0}
  """
  layers = Layers.of(params)
  if not layers.blocks:
    raise ValueError('a rate for each layer needs blocks, parameters backbone/stage_S_block_I/...')
  return _by_path(lambda path: float(decay ** (layers.last - layers.number(path))), params)


def layer_list(params: Mapping[str, Any]) -> dict[int, list[str]]:
  """The paths of the parameters of every layer, by its number: to look at what belongs where."""
  layers = Layers.of(params)
  listed: dict[int, list[str]] = {number: [] for number in range(layers.last + 1)}
  for path in flax.traverse_util.flatten_dict(dict(params), sep='/'):
    listed[layers.number(path)].append(path)
  return listed


def _by_path(function: Any, tree: Any) -> Any:
  def at(path: tuple, _: Any) -> Any:
    return function(jax.tree_util.keystr(path, simple=True, separator='/'))

  return jax.tree_util.tree_map_with_path(at, tree)
