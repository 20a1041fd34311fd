"""A classifier opened: its maps, the features that are pooled and its blocks, as values inside."""

import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jattn.explain.program import Program, trace
from jattn.models import Classifier
from jattn.types import Attended, AttentionMap

_BLOCK = re.compile(r'(insert_)?stage_\d+(_block_\d+)?')


@dataclasses.dataclass(frozen=True)
class Look:
  """A map of the network.

  Attributes:
    path: its name in ``Prediction.maps``.
    kind: what its numbers mean, see ``jattn.types.AttentionMap``.
    grid: (H, W) of the positions it speaks of.
    keys: int [Q, K], which position each key is, or None where key j is position j.
    shape: of its weights.
    shown: number of the weights that are returned.
    used: number of what the logits are computed from and the weights are a rearranged copy of, most
      often themselves; None where the map is formed beside what is used.
  """

  path: str
  kind: str
  grid: tuple[int, int]
  keys: np.ndarray | None
  shape: tuple[int, ...]
  shown: int
  used: int | None

  @property
  def mechanism(self) -> str:
    """The path without the map's own name."""
    return self.path.rpartition('/')[0]


@dataclasses.dataclass(frozen=True)
class Network:
  """A classifier at a batch of images, traced once in evaluation mode.

  Attributes:
    program: images and variables -> logits, maps and blocks.
    given: the arguments' leaves, by number.
    logits: their number.
    looks: the maps, in the order in which the network looks.
    blocks: numbers of the features of each block of the backbone and each mechanism behind it.
    features: number of the last features from which the logits are computed position by position,
      [B, H, W, C], or [B, T, C] with tokens before the grid's; None if there are none.
    grid: (H, W) of the features.
    class_token: whether a token of the backbone's own is classified instead of a pooling.
  """

  program: Program
  given: Mapping[int, jax.Array]
  logits: int
  looks: tuple[Look, ...]
  blocks: tuple[int, ...]
  features: int | None
  grid: tuple[int, int]
  class_token: bool

  def scores(self, logits: jax.Array, targets: jax.Array) -> jax.Array:
    """[B]: the logit of each image's target."""
    return jnp.take_along_axis(logits, targets[:, None], axis=1)[:, 0]

  def read(self, numbers: Sequence[int]) -> list[jax.Array]:
    """The values of these numbers."""
    return self.program.run(self.given, numbers)

  def gradients(
    self, numbers: Sequence[int], targets: jax.Array
  ) -> tuple[list[jax.Array], list[jax.Array]]:
    """The values of these numbers, and the gradient of each image's target logit by them."""
    shapes = [self.program.shapes[number] for number in numbers]

    def total(moves: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
      edits = {n: functools.partial(jnp.add, move) for n, move in zip(numbers, moves, strict=True)}
      logits, *values = self.program.run(self.given, [self.logits, *numbers], edits=edits)
      return jnp.sum(self.scores(logits, targets)), values

    gradient, values = jax.grad(total, has_aux=True)([jnp.zeros(s.shape, s.dtype) for s in shapes])
    return values, gradient

  def looked(self, looks: Sequence[Look], targets: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """For each map its weights and the gradient of the target logit by them, both as shown.

    The gradient is taken by what is used, and goes the way that the weights go from there to where
    they are shown.
    """
    numbers = sorted({look.used for look in looks})
    values, gradients = self.gradients(numbers, targets)
    found = dict(zip(numbers, zip(values, gradients, strict=True), strict=True))
    return [self.show(look, *found[look.used]) for look in looks]

  def show(self, look: Look, value: jax.Array, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A value and a gradient of what is used, put where the map shows them."""

    def shown(value: jax.Array) -> jax.Array:
      return self.program.run({look.used: value}, [look.shown])[0]

    return jax.jvp(shown, (value,), (gradient,))

  def read_features(self, targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The last features on a grid from which the logits are computed, and the gradient by them.

    Both [B, H, W, C]. What the pooling sees; where a class token is classified instead, what the
    attention of the last block sees, since after it the patches no longer reach the logits.

    Raises:
      ValueError: there are none.
    """
    if self.features is None:
      raise ValueError(
        'a class token is classified and no block has a norm_0 before it: no features'
      )
    values, gradients = self.gradients([self.features], targets)
    return self._on_grid(values[0]), self._on_grid(gradients[0])

  def _on_grid(self, tokens: jax.Array) -> jax.Array:
    """[B, H, W, C], of [B, T, C] without the tokens before the grid's."""
    if tokens.ndim == 4:
      return tokens
    height, width = self.grid
    return tokens[:, tokens.shape[1] - height * width :].reshape(len(tokens), height, width, -1)


def open_network(model: Classifier, variables: Mapping, images: jax.Array) -> Network:
  """Traces ``model``, which is not changed; nothing is computed.

  Raises:
    ValueError: the model is no ``Classifier``.
  """
  if not isinstance(model, Classifier):
    raise ValueError(f'maps and features are those of a Classifier, not of {type(model).__name__}')

  def forward(variables: Mapping, images: jax.Array) -> tuple:
    prediction, state = model.apply(
      variables, images, train=False, capture_intermediates=_is_block, mutable=['intermediates']
    )
    return prediction.logits, dict(prediction.maps), state['intermediates']

  program, numbers, (logits, maps, inside) = trace(forward, variables, images)
  leaves = jax.tree.leaves((variables, images))
  given = dict(zip(jax.tree.leaves(numbers), leaves, strict=True))
  used = program.reaching(logits) & program.reached_from(list(given))
  looks = [_look(program, path, value, used) for path, value in maps.items()]
  (backbone,) = inside['backbone']['__call__']
  blocks = sorted(set(_features(inside)))
  class_token = model.pool is None
  features: int | None = backbone.features
  if class_token:
    # Behind the last block only the class token is read, and before its norm the features have no
    # gradient along themselves, which would leave nothing of gradient times features.
    features = max(_norms(inside), default=None)
  for index in range(0 if class_token else len(model.attention)):
    (attended,) = inside[f'attention_{index}']['__call__']
    if program.shapes[attended.features].shape[1:3] != program.shapes[features].shape[1:3]:
      break  # a mechanism that makes tokens: what follows has no places
    features = attended.features
  return Network(
    program=program,
    given=given,
    logits=logits,
    looks=tuple(sorted(looks, key=lambda look: look.shown)),
    blocks=tuple(blocks),
    features=features,
    grid=program.shapes[backbone.features if class_token else features].shape[1:3],
    class_token=class_token,
  )


def _is_block(module: Any, method: str) -> bool:
  """Whether this is the backbone, a block of it, its first norm, or a mechanism behind it."""
  name = module.path[-1] if module.path else ''
  if method != '__call__' or not name:
    return False
  if len(module.path) == 1:
    return name == 'backbone' or name.startswith('attention_')
  return name == 'norm_0' or bool(_BLOCK.fullmatch(name))


def _features(inside: Any) -> list[int]:
  """The numbers of the features in all that blocks, but not the backbone, have returned."""
  backbone = inside['backbone']['__call__'][0]
  returned = jax.tree.leaves(inside, is_leaf=lambda leaf: isinstance(leaf, Attended))
  blocks = [leaf for leaf in returned if isinstance(leaf, Attended) and leaf is not backbone]
  return [block.features for block in blocks]


def _norms(inside: Any) -> list[int]:
  """The numbers of what the first norms of the backbone's blocks have returned."""
  numbers = []
  for path, number in jax.tree_util.tree_leaves_with_path(inside):
    names = [getattr(part, 'key', '') for part in path]  # ..., block, norm, '__call__', 0
    if names[-3:-2] == ['norm_0'] and re.fullmatch(r'stage_\d+_block_\d+', names[-4]):
      numbers.append(number)
  return numbers


def _look(program: Program, path: str, value: AttentionMap, used: set[int]) -> Look:
  keys = None
  if value.keys is not None:
    with jax.ensure_compile_time_eval():
      keys = np.asarray(program.run({}, [value.keys])[0])
  source = program.source(value.weights, used)
  shape = program.shapes[value.weights].shape
  return Look(path, value.kind, value.grid, keys, shape, value.weights, source)
