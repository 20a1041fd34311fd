"""Whether a map depends on the network, on the class, and on what the network uses."""

import functools
from collections.abc import Mapping

import flax.core
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jattn.explain.attention_maps import all_received
from jattn.explain.methods import explain, predicted
from jattn.explain.perturbation import drops_under
from jattn.explain.program import trace
from jattn.explain.ranking import spearman
from jattn.explain.score import Score
from jattn.explain.subject import Subject


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
  """
  logits = _logits(model, variables, images)
  targets = predicted(logits) if targets is None else targets
  if others is None:
    own = jax.nn.one_hot(targets, logits.shape[1], dtype=bool)
    others = predicted(jnp.where(own, -jnp.inf, logits))
  maps = functools.partial(explain, method, model, variables, images, key=key, **settings)
  return _alike(maps(targets), maps(others))


def attention_faithfulness(
  model: nn.Module,
  variables: Mapping,
  images: jax.Array,
  targets: jax.Array | None = None,
  *,
  baseline: jax.Array | float = 0.0,
  images_at_once: int = 128,
) -> dict[str, Score]:
  """Whether what a map attends to is what the logit needs: -1..1, higher is better, chance 0.

  Spearman's correlation, over the cells of the map's grid, of the attention that a cell receives
  (as the method 'attention' shows it) and of how much the target's logit drops when the cell is
  covered in the image; for every map of the model that speaks of places. After the leave-one-out
  test of Jain & Wallace 2019, arXiv 1902.10186. Uniform attention scores 0 and is not valid.

  Args:
    model, variables, images, targets: as for ``explain``.
    baseline: what covers a cell, a number or what broadcasts to [B, H, W, C].
    images_at_once: about how many images are looked at in one call.

  Returns:
    Scores by the path of the map.

  Raises:
    ValueError: no map speaks of places.
  """
  baseline = jnp.asarray(baseline, images.dtype)
  return _faithfulness(model, images_at_once, variables, images, targets, baseline)


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


@functools.partial(jax.jit, static_argnums=(0, 1))
def _faithfulness(
  model: nn.Module,
  images_at_once: int,
  variables: Mapping,
  images: jax.Array,
  targets: jax.Array | None,
  baseline: jax.Array,
) -> dict[str, Score]:
  if targets is None:
    targets = predicted(model.apply(variables, images, train=False).logits)
  subject = Subject(model, variables, images, targets)
  drops: dict[tuple[int, ...], jax.Array] = {}
  scores = {}
  for path, received in all_received(subject):
    grid = received.shape[1:]
    if grid not in drops:
      bands = [_cells(size, cells) for size, cells in zip(images.shape[1:3], grid, strict=True)]
      settings = {'baseline': baseline, 'images_at_once': images_at_once}
      drops[grid] = drops_under(subject, *bands, **settings)
    value, valid = spearman(received, drops[grid])
    flat = received.max(axis=(1, 2)) == received.min(axis=(1, 2))
    value, valid = jnp.where(flat, 0, value), valid & ~flat
    scores[path] = Score(value, jnp.zeros_like(value), valid)
  if not scores:
    raise ValueError('no map of this model speaks of places')
  return scores


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


def _cells(length: int, cells: int) -> np.ndarray:
  """bool [cells, length]: the pixels of each cell, which are as even as they can be."""
  edges = np.round(np.arange(cells + 1) * length / cells)
  place = np.arange(length)[None]
  return (place >= edges[:-1, None]) & (place < edges[1:, None])
