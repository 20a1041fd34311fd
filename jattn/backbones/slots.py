"""Where a plugged-in mechanism stands in a backbone: in a block, or after one."""

from collections.abc import Callable, Iterable, Mapping

import flax.linen as nn
import jax

from jattn.types import Attended, AttentionMap

MakeAttention = Callable[[], nn.Module]
# (path of a block or stage, what makes the mechanism that comes after it), ...
Inserts = tuple[tuple[str, MakeAttention], ...]
Maps = dict[str, AttentionMap]


def attend_in_block(
  block: nn.Module, make: MakeAttention | None, x: jax.Array, *, train: bool
) -> tuple[jax.Array, Maps]:
  """The features and maps of the mechanism in a block, called ``attention`` there; None is none.

  Args:
    block: the module that is being built (inside its compact method).
    make: makes the mechanism, or None.
    x: [B, H, W, C].
    train: handed on.

  Raises:
    ValueError: the mechanism changes the shape.
  """
  if make is None:
    return x, {}
  mechanism = _made(make, 'attention', block)
  attended = mechanism(x, train=train)
  if attended.features.shape != x.shape:
    raise ValueError(
      f'attention in a block must keep the shape; {type(mechanism).__name__} made '
      f'{attended.features.shape} of {x.shape}'
    )
  return attended.features, under('attention', attended.maps)


def insert(
  backbone: nn.Module, inserts: Inserts, path: str, x: jax.Array, *, train: bool
) -> tuple[jax.Array, Maps]:
  """The features and maps after what was inserted at ``path``; ``x`` itself where nothing was.

  A backbone calls it after every block, with 'stage_S/block_I', and after every stage, with
  'stage_S'. The inserted module is called 'insert_stage_S_block_I' and its maps come back under
  'stage_S/block_I/inserted/...'.
  """
  maps: Maps = {}
  for place, make in inserts:
    if place == path:
      module = _made(make, f'insert_{path.replace("/", "_")}', backbone)
      attended = module(x, train=train)
      x, maps = attended.features, under(f'{path}/inserted', attended.maps)
  return x, maps


def check_inserts(inserts: Inserts, paths: list[str]) -> None:
  """Refuses an insert at a place that is not there, or a second one at the same place.

  Raises:
    ValueError: naming the place, and the places there are.
  """
  seen = set()
  for place, _ in inserts:
    if place not in paths:
      raise ValueError(f'nothing is called {place!r} in this backbone; there are {paths}')
    if place in seen:
      raise ValueError(f'{place!r} holds an inserted block already')
    seen.add(place)


def places(depths: tuple[int, ...]) -> list[str]:
  """Every place for ``insert`` in a backbone of ``depths`` blocks a stage.

  >>> places((1, 2))
  ['stage_0/block_0', 'stage_0', 'stage_1/block_0', 'stage_1/block_1', 'stage_1']
  """
  return [
    place
    for stage, depth in enumerate(depths)
    for place in [*(f'stage_{stage}/block_{index}' for index in range(depth)), f'stage_{stage}']
  ]


def under(path: str, maps: Mapping[str, AttentionMap]) -> Maps:
  """The same maps under ``path/``."""
  return {f'{path}/{name}': value for name, value in maps.items()}


def run(block: nn.Module, x: jax.Array, *, train: bool, remat: bool) -> Attended:
  """``block(x, train=train)``; with ``remat`` its activations are made again in the backward pass.

  Chen et al. 2016, arXiv 1604.06174: memory for about a third more time. Values do not change.
  """

  def call(block: nn.Module, x: jax.Array) -> Attended:
    return block(x, train=train)

  return nn.remat(call)(block, x) if remat else call(block, x)


def run_stage(
  backbone: nn.Module, stage: int, blocks: Iterable[nn.Module], x: jax.Array, *, train: bool
) -> tuple[jax.Array, Maps]:
  """The features after a stage and its maps: blocks one after another, and what was inserted.

  Args:
    backbone: has the fields ``inserts`` and ``remat``, and is being built.
    stage: its number.
    blocks: features -> Attended, called 'stage_S_block_I'; each is made when it is its turn.
    x: [B, H, W, C].
    train: handed on.
  """
  maps: Maps = {}
  for index, block in enumerate(blocks):
    path = f'stage_{stage}/block_{index}'
    attended = run(block, x, train=train, remat=backbone.remat)
    x, inserted = insert(backbone, backbone.inserts, path, attended.features, train=train)
    maps |= under(path, attended.maps) | inserted
  x, inserted = insert(backbone, backbone.inserts, f'stage_{stage}', x, train=train)
  return x, maps | inserted


def _made(make: MakeAttention, name: str, parent: nn.Module) -> nn.Module:
  """What ``make`` makes, as a child of ``parent``.

  Called inside a compact method, ``lambda: Residual(SqueezeExcite())`` hangs the inner module on
  whoever is running; a deep clone hangs it on the module that holds it.
  """
  return make().clone(name=name, parent=parent, _deep_clone=True, _reset_names=True)
