"""Whether a map depends on the network and on the class."""

import functools
from collections.abc import Mapping

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.explain.methods import explain, predicted
from jattn.explain.program import trace
from jattn.explain.ranking import spearman
from jattn.explain.score import Score


def parameter_randomisation(
  key: jax.Array,
  method: str,
  model: nn.Module,
  variables: Mapping,
  images: jax.Array,
  targets: jax.Array | None = None,
  *,
  draw_key: jax.Array | None = None,
  **settings,
) -> dict[str, Score]:
  """How alike maps stay as the network's parameters are drawn anew, layer by layer from the top.

  Spearman's correlation of ``|map|`` before and after: -1..1, lower is better, exactly 1 on
  unchanged parameters. A constant map, or one that does not depend on the parameters (edges),
  scores 1, which is chance. Adebayo et al. 2018, arXiv 1810.03292, cascading randomisation. A layer
  is the head, the pooling, a mechanism behind the backbone, or a block of the backbone; drawn anew
  are its parameters and its running statistics, as ``model.init`` starts them. The class that is
  asked about stays that of the trained network.

  Args:
    key: of the new parameters.
    method: a name of ``list_methods()``.
    model, variables, images, targets: as for ``explain``.
    draw_key: the key of methods that draw at random, the same for all maps.
    **settings: of the method.

  Returns:
    'unchanged', then each layer's name, from the last to the first: the score with that layer and
    all above it drawn anew. Where only one of the two maps is constant the score is 0 and not
    valid.

  Raises:
    ValueError: as ``explain``, or the variables were made for images of another size.
  """
  variables = flax.core.unfreeze(variables)
  shapes = jax.tree.map(jnp.shape, jax.eval_shape(_drawn, model, key, images))
  if shapes != jax.tree.map(jnp.shape, variables):
    raise ValueError('parameters drawn for images of this size have other shapes than the given')
  fresh = _drawn(model, key, images)
  if targets is None:
    targets = _predicted(model, variables, images)
  maps = functools.partial(explain, method, model, key=draw_key, **settings)
  before = jnp.abs(maps(variables, images, targets))
  scores = {'unchanged': _alike(before, before)}
  chosen: set[str] = set()
  for layer in layers_from_the_top(model, variables, images):
    chosen.add(layer)
    mixed = jax.tree_util.tree_map_with_path(
      lambda path, old, new: new if _layer(path) in chosen else old, variables, fresh
    )
    scores[layer] = _alike(before, jnp.abs(maps(mixed, images, targets)))
  return scores


def class_sensitivity(
  method: str,
  model: nn.Module,
  variables: Mapping,
  images: jax.Array,
  targets: jax.Array | None = None,
  *,
  others: jax.Array | None = None,
  key: jax.Array | None = None,
  **settings,
) -> Score:
  """How alike the maps of two classes are: Spearman's correlation, -1..1, lower is better.

  A map that does not depend on the class (attention, rollout, every control) scores exactly 1,
  which is chance. The random-logit test of Sixt et al. 2019, arXiv 1912.09818.

  Args:
    method, model, variables, images, targets, key, settings: as for ``explain``.
    others: int [B], the other class; None is the likeliest but for the target.

  Raises:
    ValueError: the model knows one class only.
  """
  logits = _logits(model, variables, images)
  if logits.shape[1] < 2:
    raise ValueError('class_sensitivity compares the maps of two classes; the model has one')
  targets = predicted(logits) if targets is None else targets
  if others is None:
    own = jax.nn.one_hot(targets, logits.shape[1], dtype=bool)
    others = predicted(jnp.where(own, -jnp.inf, logits))
  maps = functools.partial(explain, method, model, variables, images, key=key, **settings)
  return _alike(maps(targets), maps(others))


def layers_from_the_top(model: nn.Module, variables: Mapping, images: jax.Array) -> list[str]:
  """The layers that ``parameter_randomisation`` draws anew, in the order it does.

  The last is the one that the forward pass reads first.
  """

  def forward(variables: Mapping, images: jax.Array) -> jax.Array:
    return model.apply(variables, images, train=False).logits

  program, (numbers, _), _ = trace(forward, flax.core.unfreeze(variables), images)
  read: dict[int, int] = {}
  for place, step in enumerate(program.steps):
    for number in step.inputs:
      read.setdefault(number, place)
  last: dict[str, int] = {}
  for path, number in jax.tree_util.tree_leaves_with_path(numbers):
    layer = _layer(path)
    last[layer] = max(last.get(layer, -1), read.get(number, -1))
  return sorted(last, key=lambda layer: -last[layer])


@functools.partial(jax.jit, static_argnums=0)
def _drawn(model: nn.Module, key: jax.Array, images: jax.Array) -> dict:
  return flax.core.unfreeze(model.init(key, images, train=False))


@jax.jit
def _alike(before: jax.Array, after: jax.Array) -> Score:
  value, valid = spearman(before, after)
  return Score(value, jnp.ones_like(value), valid, higher_is_better=False)


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: nn.Module, variables: Mapping, images: jax.Array) -> jax.Array:
  return model.apply(variables, images, train=False).logits


def _predicted(model: nn.Module, variables: Mapping, images: jax.Array) -> jax.Array:
  return predicted(_logits(model, variables, images))


def _layer(path: tuple) -> str:
  """The layer of a variable: 'head', 'pool', or 'backbone/stage_0_block_1'."""
  names = [part.key for part in path[1:]]
  return '/'.join(names[:2]) if names[0] == 'backbone' else names[0]
