"""What a score is, and how sure it is over images."""

import functools
from typing import NamedTuple

import chex
import flax.struct
import jax
import jax.numpy as jnp

from jattn.ops.reshape import on_any_mesh


@flax.struct.dataclass
class Score:
  """A number for each image, beside what a map that says nothing would get.

  Never NaN: where a score is not defined its value is the chance level and ``valid`` is False.

  Attributes:
    value: [B].
    chance: [B], the value of a constant map, for the same image.
    valid: bool [B], whether the image can be scored at all (its mask is not empty, ...); a
      constant map is valid, and scores chance.
    higher_is_better: the direction.
  """

  value: jax.Array
  chance: jax.Array
  valid: jax.Array
  higher_is_better: bool = flax.struct.field(pytree_node=False, default=True)

  @property
  def gain(self) -> jax.Array:
    """[B]: how much better than chance, in the score's own unit; above zero is better."""
    return (self.value - self.chance) * (1 if self.higher_is_better else -1)


class Interval(NamedTuple):
  """A mean over images and its interval.

  Attributes:
    mean: over the valid images.
    low: lower end.
    high: upper end.
    count: how many images are valid.
  """

  mean: float
  low: float
  high: float
  count: int


def bootstrap_interval(
  key: jax.Array,
  values: jax.Array,
  valid: jax.Array | None = None,
  *,
  level: float = 0.95,
  samples: int = 2000,
) -> Interval:
  """The mean of ``values`` over images and its percentile bootstrap interval.

  The images are drawn again with replacement ``samples`` times, and the interval holds the middle
  ``level`` of the means. Efron 1979, Annals of Statistics 7. For the difference of two methods on
  the same images give the differences.

  Args:
    key: of the draws.
    values: [B].
    valid: bool [B], the images that count; None is all.
    level: in (0, 1).
    samples: number of draws.

  Raises:
    ValueError: no image is valid, or ``level`` is outside its range.

  >>> bootstrap_interval(jax.random.key(0), jnp.array([2.0, 2.0, 9.0]), jnp.array([1, 1, 0]))
  Interval(mean=2.0, low=2.0, high=2.0, count=2)
  """
  if not 0 < level < 1:
    raise ValueError(f'{level=} must be in (0, 1)')
  values = jnp.asarray(values, jnp.float32)
  chex.assert_rank(values, 1)
  valid = jnp.ones(len(values), bool) if valid is None else jnp.asarray(valid, bool)
  chex.assert_equal_shape((values, valid))
  if not valid.any():
    raise ValueError('no image is valid: there is nothing to take a mean of')
  mean, low, high = map(float, _bootstrap(key, values, valid, level, samples))
  return Interval(mean, low, high, int(valid.sum()))


@on_any_mesh('values', axes=0)
@functools.partial(jax.jit, static_argnames='samples')
def _bootstrap(
  key: jax.Array, values: jax.Array, valid: jax.Array, level: jax.Array, samples: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """(mean, low, high); the shapes do not depend on how many are valid, so it is compiled once."""
  count = valid.sum()
  values = values[jnp.argsort(~valid)]
  first = jnp.arange(len(values)) < count

  def mean(key: jax.Array) -> jax.Array:
    drawn = values[jax.random.randint(key, values.shape, 0, count)]
    return jnp.sum(drawn, where=first) / count

  means = jax.lax.map(mean, jax.random.split(key, samples), batch_size=100)
  tail = (1 - level) / 2
  low, high = jnp.quantile(means, jnp.stack([tail, 1 - tail]))
  return jnp.sum(values, where=first) / count, low, high


def settled(maps: jax.Array) -> jax.Array:
  """Maps [B, H, W] as float32, all zero where a map is not finite: it says nothing then."""
  maps = jnp.asarray(maps, jnp.float32)
  chex.assert_rank(maps, 3)
  return jnp.where(jnp.isfinite(maps).all(axis=(1, 2), keepdims=True), maps, 0)
