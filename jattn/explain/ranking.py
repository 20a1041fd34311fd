"""Ranks with ties: the sorted pixels of a map, and rank correlation."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jattn.ops.reshape import on_any_mesh


class Ranked(NamedTuple):
  """Maps [B, P] sorted from the largest value down; equal values are one group.

  Attributes:
    values: [B, P], falling.
    beside: [B, P], what was given along, in the same order.
    first: int32 [B, P], index of the first of the group.
    last: int32 [B, P], index of the last of the group.
  """

  values: jax.Array
  beside: jax.Array
  first: jax.Array
  last: jax.Array


def ranked(values: jax.Array, beside: jax.Array) -> Ranked:
  """Sorts both [B, P] by ``values``, the largest first.

  >>> ranked(jnp.array([[1.0, 3.0, 1.0]]), jnp.array([[7, 8, 9]])).last.tolist()
  [[0, 2, 2]]
  """
  chex.assert_rank((values, beside), 2)
  falling, beside = jax.lax.sort((-values, beside), dimension=1, num_keys=1)
  place = jnp.broadcast_to(jnp.arange(values.shape[1], dtype=jnp.int32), values.shape)
  differs = falling[:, 1:] != falling[:, :-1]
  starts = jnp.pad(differs, ((0, 0), (1, 0)), constant_values=True)
  ends = jnp.pad(differs, ((0, 0), (0, 1)), constant_values=True)
  first = jax.lax.cummax(jnp.where(starts, place, 0), axis=1)
  last = jax.lax.cummin(jnp.where(ends, place, values.shape[1] - 1), axis=1, reverse=True)
  return Ranked(-falling, beside, first, last)


def mid_ranks(values: jax.Array) -> jax.Array:
  """Rank of each value less the mean rank [B, P]; equal values share the mean of their ranks.

  >>> mid_ranks(jnp.array([[5.0, 1.0, 5.0, 2.0]])).tolist()
  [[1.0, -1.5, 1.0, -0.5]]
  """
  count = values.shape[1]
  place = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), values.shape)
  order = ranked(values, place)
  ranks = (count - 1) / 2 - (order.first + order.last) / 2
  return jnp.zeros(values.shape).at[jnp.arange(len(values))[:, None], order.beside].set(ranks)


@on_any_mesh('a')
@jax.jit
def spearman(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Rank correlation of two maps of each image, ties by their mean rank.

  Args:
    a: [B, ...].
    b: [B, ...], the same shape.

  Returns:
    [B] in -1..1, and bool [B], whether it is defined. Maps of equal order give exactly 1, also if
    both are constant; where only one is constant or one is not finite it is not defined, and zero.

  >>> value, valid = spearman(jnp.array([[1.0, 2.0, 3.0]]), jnp.array([[9.0, 4.0, 1.0]]))
  >>> value.tolist(), valid.tolist()
  ([-1.0], [True])
  """
  chex.assert_equal_shape((a, b))
  x, y = (each.reshape(len(each), -1) for each in (a, b))
  finite = (jnp.isfinite(x) & jnp.isfinite(y)).all(axis=1)
  x, y = mid_ranks(x) / x.shape[1], mid_ranks(y) / y.shape[1]
  same = (x == y).all(axis=1)
  size = jnp.sqrt(jnp.sum(x * x, axis=1) * jnp.sum(y * y, axis=1))
  valid = finite & (same | (size > 0))
  value = jnp.sum(x * y, axis=1) / jnp.where(size > 0, size, 1)
  return jnp.where(valid, jnp.where(same, 1.0, jnp.clip(value, -1, 1)), 0.0), valid
