"""What becomes of the prediction when pixels are taken away in the order of a map.

Each score takes a model, its variables, images [B, H, W, C] and maps [B, H, W], and runs in one
compiled call, in which about ``images_at_once`` images are looked at at a time. The rules:

- pixels go in the order of the map, equal values in an order drawn from ``key``, the same for all
  images of a batch; exactly ``k`` pixels are gone at a step that says k, whatever the ties;
- chance is the score of a constant map, whose pixels go in the drawn order;
- a map that is not finite counts as constant.
"""

import functools
from collections.abc import Mapping, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jattn.explain.imputation import impute
from jattn.explain.methods import predicted
from jattn.explain.score import Score, settled
from jattn.explain.subject import Subject, each, share
from jattn.ops.reshape import on_any_mesh


@flax.struct.dataclass
class Curves:
  """The probability of the target as pixels go or come, in the order of a map.

  Attributes:
    fractions: [S + 1], which part of the pixels has gone or come, 0 to 1.
    deletion: [B, S + 1], the pixels of the map's largest values gone.
    insertion: [B, S + 1], the pixels of the map's largest values come, on a blurred image.
    deletion_by_chance: [B, S + 1], in the drawn order.
    insertion_by_chance: [B, S + 1], in the drawn order.
  """

  fractions: jax.Array
  deletion: jax.Array
  insertion: jax.Array
  deletion_by_chance: jax.Array
  insertion_by_chance: jax.Array

  def scores(self) -> dict[str, Score]:
    """Areas under the curves by the trapezoid rule: 0..1, ``deletion`` lower is better."""
    return {
      'deletion': self._score(self.deletion, self.deletion_by_chance, False),
      'insertion': self._score(self.insertion, self.insertion_by_chance, True),
    }

  def _score(self, curve: jax.Array, chance: jax.Array, higher_is_better: bool) -> Score:
    area = functools.partial(jnp.trapezoid, x=self.fractions[None])
    return Score(area(curve), area(chance), jnp.ones(len(curve), bool), higher_is_better)


def deletion_and_insertion(
  model: nn.Module,
  variables: Mapping,
  images: jax.Array,
  maps: jax.Array,
  targets: jax.Array | None = None,
  *,
  key: jax.Array,
  steps: int = 50,
  baseline: jax.Array | float = 0.0,
  images_at_once: int = 128,
) -> Curves:
  """Deletion and insertion of RISE: Petsiuk et al. 2018, arXiv 1806.07421.

  At step s of S exactly ``round(s P / S)`` of the P pixels are replaced: for deletion by the
  baseline, for insertion those of a blurred image (Gaussian 11x11, sigma 5 pixels) by the image's.
  ``Curves.scores()`` gives the areas, deletion low and insertion high for a good map. Removing
  pixels makes images that the network has never seen, which both scores share; ``road`` less so.

  Args:
    model: called ``apply(variables, images, train=False)``, with ``logits`` in what returns.
    variables: its variables.
    images: [B, H, W, C] floating.
    maps: [B, H, W].
    targets: int [B]; None is the predicted class.
    key: of the order of equal values.
    steps: S.
    baseline: a number or what broadcasts to [B, H, W, C].
    images_at_once: about how many images are looked at at a time.

  Raises:
    ValueError: a setting is outside its range, or the shapes disagree.
  """
  _check(images, maps)
  if steps < 1:
    raise ValueError(f'{steps=} must be positive')
  pixels = images.shape[1] * images.shape[2]
  counts = tuple(round(step * pixels / steps) for step in range(steps + 1))
  baseline = jnp.asarray(baseline, images.dtype)
  fixed = (model, counts, images_at_once)
  curves = _curves(*fixed, variables, images, maps, targets, key, baseline)
  return Curves(jnp.asarray([count / pixels for count in counts], jnp.float32), **curves)


def road(
  model: nn.Module,
  variables: Mapping,
  images: jax.Array,
  maps: jax.Array,
  targets: jax.Array | None = None,
  *,
  key: jax.Array,
  fractions: Sequence[float] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
  order: str = 'most',
  noise: float = 0.01,
  images_at_once: int = 128,
) -> Score:
  """Remove and debias: whether the target is still predicted with pixels filled in, 0..1.

  Mean over ``fractions`` of ``argmax = target`` after the round(f P) pixels of the largest values
  are replaced by ``impute``. Rong et al. 2022, arXiv 2202.00449: a filled-in pixel tells less of
  where it was removed than a black one. With ``order`` 'most' lower is better, with 'least', where
  the smallest values go, higher is better.

  Args:
    model, variables, images, maps, targets: as for ``deletion_and_insertion``.
    key: of the order of equal values and of the noise.
    fractions: of the pixels that go, in 0..1.
    order: 'most' or 'least'.
    noise: standard deviation of what is added to the filled-in pixels, in the image's units.
    images_at_once: about how many images are looked at at a time.

  Raises:
    ValueError: ``order`` is neither of the two, a fraction is outside 0..1, or the shapes disagree.
  """
  _check(images, maps)
  if order not in ('most', 'least'):
    raise ValueError(f"{order=} must be 'most' or 'least'")
  fractions = tuple(map(float, fractions))
  if not fractions or not all(0 <= fraction <= 1 for fraction in fractions):
    raise ValueError(f'{fractions=} must be in 0..1')
  fixed = (model, fractions, order, images_at_once)
  value, chance = _road(*fixed, variables, images, maps, targets, key, noise)
  return Score(value, chance, jnp.ones(len(value), bool), order == 'least')


@on_any_mesh('maps')
@jax.jit
def removal_ranks(key: jax.Array, maps: jax.Array) -> jax.Array:
  """In which order pixels go: 0 is the largest value's; int32 [B, H, W], each number once.

  Equal values go in an order drawn from ``key``, the same for all images. ``ranks < k`` are exactly
  k pixels.

  >>> removal_ranks(jax.random.key(0), jnp.array([[[0.5, 2.0, 1.0]]])).tolist()
  [[[2, 0, 1]]]
  """
  flat = settled(maps).reshape(len(maps), -1)
  count = flat.shape[1]
  drawn = jnp.broadcast_to(jax.random.permutation(key, count), flat.shape)
  place = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), flat.shape)
  *_, order = jax.lax.sort((-flat, drawn, place), dimension=1, num_keys=2)
  ranks = jnp.zeros(flat.shape, jnp.int32).at[jnp.arange(len(flat))[:, None], order].set(place)
  return ranks.reshape(maps.shape)


def blur(images: jax.Array, *, size: int = 11, sigma: float = 5.0) -> jax.Array:
  """Gaussian blur of [B, H, W, C], the border repeated.

  >>> blur(jnp.ones((1, 2, 3, 1))).ravel().round(3).tolist()
  [1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
  """
  reach = jnp.arange(size) - (size - 1) / 2
  bell = jnp.exp(-(reach**2) / (2 * sigma**2))
  bell = (bell / bell.sum()).astype(images.dtype)
  left, right = (size - 1) // 2, size // 2
  height, width = images.shape[1:3]
  padded = jnp.pad(images, ((0, 0), (left, right), (left, right), (0, 0)), mode='edge')
  down = sum(bell[i] * padded[:, i : i + height] for i in range(size))
  return sum(bell[i] * down[:, :, i : i + width] for i in range(size))


@on_any_mesh('images')
@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _curves(
  model: nn.Module,
  gone: tuple[int, ...],
  images_at_once: int,
  variables: Mapping,
  images: jax.Array,
  maps: jax.Array,
  targets: jax.Array | None,
  key: jax.Array,
  baseline: jax.Array,
) -> dict[str, jax.Array]:
  """The curves, where at a step so many pixels are gone."""
  subject = _subject(model, variables, images, targets)
  counts = jnp.asarray(gone)
  blurred, blank = blur(images), jnp.broadcast_to(baseline, images.shape)

  orders = _orders(key, maps)
  before, after = jnp.stack([images, blurred]), jnp.stack([blank, images])

  def probabilities(numbers: jax.Array) -> jax.Array:
    curve, step = numbers // len(counts), numbers % len(counts)
    there = orders[curve % 2] < counts[step].reshape(-1, 1, 1, 1)
    mixed = jnp.where(there[..., None], after[curve // 2], before[curve // 2])
    return subject.pick(jax.nn.softmax(subject.logits(mixed)))

  at_once = share(images_at_once, len(images))
  found = each(probabilities, 4 * len(counts), at_once=at_once).reshape(4, len(counts), -1)
  names = ('deletion', 'deletion_by_chance', 'insertion', 'insertion_by_chance')
  return dict(zip(names, found.swapaxes(1, 2), strict=True))


@on_any_mesh('images')
@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _road(
  model: nn.Module,
  fractions: tuple[float, ...],
  order: str,
  images_at_once: int,
  variables: Mapping,
  images: jax.Array,
  maps: jax.Array,
  targets: jax.Array | None,
  key: jax.Array,
  noise: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  subject = _subject(model, variables, images, targets)
  pixels = images.shape[1] * images.shape[2]
  counts = jnp.asarray([round(fraction * pixels) for fraction in fractions])
  ties, noises = jax.random.split(key)

  orders = _orders(ties, maps)
  orders = orders if order == 'most' else pixels - 1 - orders

  def right(numbers: jax.Array) -> jax.Array:
    which, step = numbers // len(fractions), numbers % len(fractions)
    gone = orders[which] < counts[step].reshape(-1, 1, 1, 1)
    filled = jax.vmap(impute, (None, 0))(images, gone)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(noises, step)
    drawn = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)
    filled = filled + noise * drawn[:, None] * gone[..., None]
    return (predicted(subject.logits(filled)) == subject.targets[None]).astype(jnp.float32)

  at_once = share(images_at_once, len(images))
  found = each(right, 2 * len(fractions), at_once=at_once)
  value, chance = found.reshape(2, len(fractions), -1).mean(axis=1)
  return value, chance


def _orders(key: jax.Array, maps: jax.Array) -> jax.Array:
  """[2, B, H, W]: the maps' order, and the drawn one, which is a constant map's."""
  drawn = removal_ranks(key, jnp.zeros((1, *maps.shape[1:])))
  return jnp.stack([removal_ranks(key, maps), jnp.broadcast_to(drawn, maps.shape)])


def _subject(
  model: nn.Module, variables: Mapping, images: jax.Array, targets: jax.Array | None
) -> Subject:
  if targets is None:
    targets = predicted(model.apply(variables, images, train=False).logits)
  return Subject(model, variables, images, targets)


def _check(images: jax.Array, maps: jax.Array) -> None:
  if maps.shape != images.shape[:3]:
    raise ValueError(f'maps {maps.shape} must have the size of the images {images.shape[:3]}')
