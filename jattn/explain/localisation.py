"""How well a map finds what is marked: scores against a mask.

All take maps [B, H, W] and masks [B, H, W] (or [B, H, W, 1]), true where the object is, and return
a ``Score`` for each image. ``P = H W``, ``|m|`` the marked pixels, ``area = |m| / P``. The same
rules hold everywhere:

- ties are settled by expectation: a value is the mean over all orders of equal pixels, or takes
  equal pixels together where a threshold cannot part them;
- a constant map scores exactly chance, and so does one that is not finite;
- an empty mask is not valid, and where inside is compared with outside neither is a full one.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jattn.explain.ranking import mid_ranks, ranked
from jattn.explain.score import Score, settled
from jattn.ops.reshape import on_any_mesh


@on_any_mesh('maps')
@functools.partial(jax.jit, static_argnames='tolerance')
def pointing_game(maps: jax.Array, masks: jax.Array, *, tolerance: int = 0) -> Score:
  """Whether the largest value lies in the mask: 0..1, higher is better, chance is the area.

  ``(maximisers in m) / maximisers``: the expected hit if one of the largest values is picked at
  random. Zhang et al. 2016, arXiv 1608.00507, who also count a hit up to 15 pixels beside the
  object.

  Args:
    maps: [B, H, W].
    masks: [B, H, W].
    tolerance: how many pixels beside the mask still count; the chance level grows with it.
  """
  maps, inside = _both(maps, masks)
  marked = inside.any(axis=(1, 2))
  inside = _dilated(inside, tolerance)
  top = maps == maps.max(axis=(1, 2), keepdims=True)
  return _over_area(maps, inside, _count(top & inside) / _count(top), marked)


@on_any_mesh('maps')
@jax.jit
def energy(maps: jax.Array, masks: jax.Array) -> Score:
  """How much of the positive part lies in the mask: 0..1, higher is better, chance is the area.

  ``sum a+ m / sum a+`` (relevance mass accuracy; energy-based pointing game of Wang et al. 2019,
  arXiv 1910.01279). A map without a positive part scores chance.
  """
  maps, inside = _both(maps, masks)
  positive = jax.nn.relu(maps)
  # By its largest value, so that sums neither overflow nor vanish.
  top = positive.max(axis=(1, 2), keepdims=True)
  positive = positive / jnp.where(top > 0, top, 1)
  part = jnp.sum(positive * inside, axis=(1, 2)) / jnp.maximum(positive.sum(axis=(1, 2)), 1)
  return _over_area(positive, inside, part)


@on_any_mesh('maps')
@jax.jit
def energy_lift(maps: jax.Array, masks: jax.Array) -> Score:
  """``energy`` over the area: 0..1/area, higher is better, chance is 1."""
  plain = energy(maps, masks)
  ones = jnp.ones_like(plain.value)
  value = plain.value / jnp.where(plain.valid, plain.chance, 1)
  return Score(jnp.where(plain.valid & (plain.gain != 0), value, 1), ones, plain.valid)


@on_any_mesh('maps')
@jax.jit
def rank_accuracy(maps: jax.Array, masks: jax.Array) -> Score:
  """How many of the |m| largest values lie in the mask: 0..1, higher is better, chance is the area.

  ``|top_|m|(a) and m| / |m|``, relevance rank accuracy of Arras et al. 2020 (CLEVR-XAI),
  arXiv 2003.07258; where equal values straddle the border, the expected number.
  """
  maps, inside = _both(maps, masks)
  count = _count(inside)
  order = ranked(_rows(maps), _rows(inside))
  border = jnp.maximum(count.astype(jnp.int32) - 1, 0)[:, None]
  threshold = jnp.take_along_axis(order.values, border, axis=1)
  above, equal = order.values > threshold, order.values == threshold
  # Parts of |m|: those surely among the largest, and those of equal values that may be.
  most = jnp.maximum(count, 1)
  sure, left = jnp.sum(above & order.beside, axis=1) / most, 1 - above.sum(axis=1) / most
  among = jnp.sum(equal & order.beside, axis=1) / equal.sum(axis=1)
  return _over_area(maps, inside, sure + left * among)


@on_any_mesh('maps')
@jax.jit
def auroc(maps: jax.Array, masks: jax.Array) -> Score:
  """How often a marked pixel is above one that is not: 0..1, higher is better, chance is 1/2.

  ``P(a_i > a_j) + P(a_i = a_j) / 2`` for i in the mask and j outside: the area under the curve of
  true over false positive rate (Mann & Whitney 1947), equal values by their mean rank.
  """
  maps, inside = _both(maps, masks)
  ranks, inside = mid_ranks(_rows(maps)), _rows(inside)
  count, size = inside.sum(axis=1), inside.shape[1]
  valid = (count > 0) & (count < size)
  mean = jnp.sum(ranks * inside, axis=1) / jnp.maximum(count, 1)
  value = 0.5 + mean / jnp.maximum(size - count, 1)
  half = jnp.full(value.shape, 0.5)
  return Score(jnp.where(valid, value, half), half, valid)


@on_any_mesh('maps')
@jax.jit
def average_precision(maps: jax.Array, masks: jax.Array) -> Score:
  """Precision averaged over the marked pixels: 0..1, higher is better, chance is the area.

  ``sum_t (recall_t - recall_(t-1)) precision_t`` over the thresholds t, which are the values of the
  map, without interpolation.
  """
  maps, inside = _both(maps, masks)
  order = ranked(_rows(maps), _rows(inside))
  found = _at(jnp.cumsum(order.beside, axis=1), order.last)
  precision = jnp.sum(found / (order.last + 1) * order.beside, axis=1)
  precision = precision / jnp.maximum(order.beside.sum(axis=1), 1)
  return _over_area(maps, inside, precision)


@on_any_mesh('maps')
@jax.jit
def best_iou(maps: jax.Array, masks: jax.Array) -> Score:
  """Intersection over union at the best threshold: 0..1, higher is better, chance is the area.

  ``max_t |{a >= t} and m| / |{a >= t} or m|`` over the values t of the map. The threshold is chosen
  with the mask at hand, so this is what a map could do, and never less than the area.
  """
  maps, inside = _both(maps, masks)
  order = ranked(_rows(maps), _rows(inside))
  found = _at(jnp.cumsum(order.beside, axis=1), order.last)
  union = order.last + 1 + order.beside.sum(axis=1, keepdims=True) - found
  return _over_area(maps, inside, jnp.max(found / union, axis=1))


@on_any_mesh('maps')
@jax.jit
def mean_iou(maps: jax.Array, masks: jax.Array) -> Score:
  """Intersection over union at the map's mean: 0..1, higher is better, chance is the area.

  The region is ``a >= mean(a)``, as Chefer et al. 2021, arXiv 2012.09838, segment; with "at least"
  a constant map marks everything.
  """
  maps, inside = _both(maps, masks)
  region = maps >= maps.mean(axis=(1, 2), keepdims=True)
  return _over_area(maps, inside, _count(region & inside) / _count(region | inside))


LOCALISATION: dict[str, Callable[..., Score]] = {
  'auroc': auroc,
  'average_precision': average_precision,
  'best_iou': best_iou,
  'energy': energy,
  'energy_lift': energy_lift,
  'mean_iou': mean_iou,
  'pointing_game': pointing_game,
  'rank_accuracy': rank_accuracy,
}


def _both(maps: jax.Array, masks: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Maps in float32 and masks as bool, both [B, H, W].

  Raises:
    ValueError: the shapes disagree.
  """
  masks = jnp.asarray(masks)
  if masks.ndim == 4 and masks.shape[-1] == 1:
    masks = masks[..., 0]
  if masks.shape != jnp.shape(maps):
    raise ValueError(f'masks {masks.shape} must have the shape of the maps {jnp.shape(maps)}')
  return settled(maps), masks > 0


def _count(region: jax.Array) -> jax.Array:
  return jnp.sum(region, axis=(1, 2), dtype=jnp.float32)


def _rows(a: jax.Array) -> jax.Array:
  return a.reshape(len(a), -1)


def _at(values: jax.Array, index: jax.Array) -> jax.Array:
  return jnp.take_along_axis(values, index, axis=1)


def _over_area(
  maps: jax.Array, inside: jax.Array, value: jax.Array, valid: jax.Array | None = None
) -> Score:
  """A score whose chance is the area: that of a constant map, to the last bit."""
  area = _count(inside) / inside[0].size
  valid = inside.any(axis=(1, 2)) if valid is None else valid
  flat = maps.max(axis=(1, 2)) == maps.min(axis=(1, 2))
  return Score(jnp.where(valid & ~flat, value, area), area, valid)


def _dilated(inside: jax.Array, tolerance: int) -> jax.Array:
  """The mask and what lies at most ``tolerance`` pixels (Euclid) beside it."""
  if tolerance < 0:
    raise ValueError(f'{tolerance=} must not be negative')
  if not tolerance:
    return inside
  reach = jnp.arange(-tolerance, tolerance + 1)
  disc = (reach[:, None] ** 2 + reach[None] ** 2 <= tolerance**2).astype(jnp.float32)
  near = jax.lax.conv_general_dilated(
    inside[..., None].astype(jnp.float32),
    disc[:, :, None, None],
    (1, 1),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
  )
  return near[..., 0] > 0.5
