"""Whether what a map marks is what the network uses."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jattn.explain.attention_maps import all_received
from jattn.explain.methods import predicted
from jattn.explain.perturbation import drops_under
from jattn.explain.ranking import spearman
from jattn.explain.score import Score, settled
from jattn.explain.subject import Subject
from jattn.ops.reshape import on_any_mesh


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


def covering_drops(
  model: nn.Module,
  variables: Mapping,
  images: jax.Array,
  targets: jax.Array | None = None,
  *,
  cells: tuple[int, int],
  baseline: jax.Array | float = 0.0,
  images_at_once: int = 128,
) -> jax.Array:
  """How far the target's logit drops when a cell of a grid is covered: [B, Y, X], signed.

  Args:
    model, variables, images, targets: as for ``explain``.
    cells: Y and X; the cells share the image as evenly as whole pixels allow.
    baseline: what covers a cell, a number or what broadcasts to [B, H, W, C].
    images_at_once: about how many images are looked at in one call.

  Raises:
    ValueError: there are more cells than pixels along a side, or none.
  """
  for count, length in zip(cells, images.shape[1:3], strict=True):
    if not 1 <= count <= length:
      raise ValueError(f'{cells=} must be in 1..{images.shape[1:3]}')
  baseline = jnp.asarray(baseline, images.dtype)
  return _drops(model, tuple(cells), images_at_once, variables, images, targets, baseline)


@on_any_mesh('maps')
@jax.jit
def faithfulness(maps: jax.Array, drops: jax.Array) -> Score:
  """Whether what a map marks is what the logit needs: -1..1, higher is better, chance 0.

  Spearman's correlation, over the cells of a grid, of the mean of the map in a cell and of the drop
  of the logit when it is covered, for maps of any method. A constant map scores 0 and is valid;
  drops that are all equal, as of a network that does not react, are not.

  Args:
    maps: [B, H, W].
    drops: [B, Y, X], as ``covering_drops`` gives them.
  """
  maps = settled(maps)
  rows, columns = (
    jnp.asarray(_cells(length, count), jnp.float32)
    for length, count in zip(maps.shape[1:], drops.shape[1:], strict=True)
  )
  # Constant maps are set aside before the means, whose rounding would put an order into them.
  flat = maps.max(axis=(1, 2)) == maps.min(axis=(1, 2))
  area = rows.sum(1)[:, None] * columns.sum(1)[None]
  means = jnp.einsum('bhw,yh,xw->byx', maps, rows, columns, precision='highest') / area[None]
  value, _ = spearman(means, drops)
  valid = drops.max(axis=(1, 2)) > drops.min(axis=(1, 2))
  return Score(jnp.where(flat | ~valid, 0, value), jnp.zeros_like(value), valid)


@on_any_mesh('images')
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


@on_any_mesh('images')
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _drops(
  model: nn.Module,
  cells: tuple[int, int],
  images_at_once: int,
  variables: Mapping,
  images: jax.Array,
  targets: jax.Array | None,
  baseline: jax.Array,
) -> jax.Array:
  if targets is None:
    targets = predicted(model.apply(variables, images, train=False).logits)
  subject = Subject(model, variables, images, targets)
  bands = [_cells(size, count) for size, count in zip(images.shape[1:3], cells, strict=True)]
  return drops_under(subject, *bands, baseline=baseline, images_at_once=images_at_once)


def _cells(length: int, cells: int) -> np.ndarray:
  """bool [cells, length]: the pixels of each cell, which are as even as they can be."""
  edges = np.round(np.arange(cells + 1) * length / cells)
  place = np.arange(length)[None]
  return (place >= edges[:-1, None]) & (place < edges[1:, None])
