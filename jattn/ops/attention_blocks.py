"""Axes cut into blocks, and biases and masks as blocks of attention need them."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend
import jax.numpy as jnp

from jattn.ops.attention_operands import PairFunction


def pad_axis(x: jax.Array, axis: int, block: int, value: float = 0) -> jax.Array:
  """The axis filled up to a multiple of the block.

  >>> pad_axis(jnp.ones(3), 0, 2).tolist()
  [1.0, 1.0, 1.0, 0.0]
  """
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % block)
  return jnp.pad(x, widths, constant_values=value) if widths[axis][1] else x


def split_axis(x: jax.Array, axis: int, block: int, value: float = 0) -> jax.Array:
  """The axis, filled up with ``value``, as blocks: [number of blocks, ..., block, ...].

  >>> split_axis(jnp.arange(3), 0, 2).tolist()
  [[0, 1], [2, 0]]
  """
  x = pad_axis(x, axis, block, value)
  return jnp.moveaxis(x.reshape(*x.shape[:axis], -1, block, *x.shape[axis + 1 :]), axis, 0)


def join_axis(x: jax.Array, axis: int, size: int) -> jax.Array:
  """The inverse of ``split_axis``, for an axis of that size.

  >>> join_axis(jnp.array([[0, 1], [2, 0]]), 0, 3).tolist()
  [0, 1, 2]
  """
  x = jnp.moveaxis(x, 0, axis)
  x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
  return jax.lax.slice_in_dim(x, 0, size, axis=axis)


def scan_blocks(step: Callable, carry: Any, xs: Any) -> tuple[Any, Any]:
  """``jax.lax.scan``, without a loop where there is one block.

  >>> scan_blocks(lambda total, x: (total + x, total), 1, jnp.array([2]))[1].tolist()
  [1]
  """
  if jax.tree.leaves(xs)[0].shape[0] > 1:
    return jax.lax.scan(step, carry, xs)
  carry, ys = step(carry, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda y: jnp.asarray(y)[None], ys)


def sum_to(x: jax.Array, like: jax.Array) -> jax.Array:
  """The transpose of broadcasting ``like`` to ``x``, of the same rank.

  >>> sum_to(jnp.ones((2, 3)), jnp.zeros((1, 3))).tolist()
  [[2.0, 2.0, 2.0]]
  """
  axes = tuple(axis for axis, size in enumerate(like.shape) if size == 1 and x.shape[axis] > 1)
  return x.sum(axes, keepdims=True).astype(like.dtype)


def heads_apart(
  array: jax.Array, leading: Sequence[int], heads: tuple[int, int], pairs: tuple[int, int]
) -> jax.Array:
  """A bias or mask with one leading axis and each key head's query heads on an axis.

  Args:
    array: broadcasts to [*leading, M, Q, K].
    leading: the leading sizes.
    heads: M', M / M'.
    pairs: Q, K.

  Returns:
    [B or 1, M' or 1, M / M' or 1, Q or 1, K or 1]; B is the product of the leading sizes.

  Raises:
    ValueError: it does not broadcast to that.

  >>> heads_apart(jnp.zeros((4, 1, 7)), (3,), (2, 2), (5, 7)).shape
  (1, 2, 2, 1, 7)
  """
  array = jnp.asarray(array)
  full = (*leading, math.prod(heads), *pairs)
  array = array.reshape((1,) * (len(full) - array.ndim) + array.shape)
  first, last = array.shape[:-3], array.shape[-3:]
  if any(size != 1 for size in first):
    array = jnp.broadcast_to(array, (*leading, *last))
  for size, wanted in zip(last, full[-3:], strict=True):
    if size not in (1, wanted):
      raise ValueError(f'a bias or mask of shape {array.shape} must broadcast to {full}')
  return array.reshape(-1, *(heads if last[0] > 1 else (1, 1)), *last[1:])


def open_function(
  function: PairFunction, block: tuple[int, int], heads: tuple[int, int]
) -> tuple[Callable[..., jax.Array], list[jax.Array], list[jax.Array]]:
  """A bias or mask function with all it closes over as arguments.

  ``jax.custom_vjp`` and ``vmap`` need that of arrays that are being differentiated or mapped.

  Args:
    function: queries and keys -> [M or 1, Q', K'].
    block: Q', K'.
    heads: M', M / M'.

  Returns:
    ``pure(numbers, constants, queries, keys)`` -> [1, M' or 1, M / M' or 1, Q', K'], and the arrays
    closed over with (``numbers``) and without (``constants``) a gradient.

  Raises:
    ValueError: the function returns another shape.

  >>> table = jnp.arange(3.0)
  >>> bias = lambda i, j: table[i[:, None] - j[None, :] + 1][None]
  >>> pure, numbers, constants = open_function(bias, (2, 2), (1, 1))
  >>> len(numbers), pure(numbers, constants, jnp.arange(2), jnp.arange(2))[0, 0, 0].tolist()
  (1, [[1.0, 0.0], [2.0, 1.0]])
  """
  indices = (jax.ShapeDtypeStruct((size,), jnp.int32) for size in block)
  closed, out = jax.make_jaxpr(function, return_shape=True)(*indices)
  if out.shape not in ((1, *block), (math.prod(heads), *block)):
    raise ValueError(f'a bias or mask function must return [M or 1, Q, K], not {out.shape}')
  split = (1, *(heads if out.shape[0] > 1 else (1, 1)), *block)
  learned = [jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in closed.consts]
  # Without the numbers of this call: JAX keeps ``pure``, and they would live as long.
  emptied = jax.extend.core.ClosedJaxpr(closed.jaxpr, [None] * len(closed.consts))

  def pure(numbers, constants, queries, keys):
    numbers, constants = iter(numbers), iter(constants)
    values = [next(numbers if yes else constants) for yes in learned]
    opened = jax.extend.core.ClosedJaxpr(emptied.jaxpr, values)
    [tile] = jax.extend.core.jaxpr_as_fun(opened)(queries, keys)
    return tile.reshape(split)

  numbers, constants = (
    [x for x, yes in zip(closed.consts, learned, strict=True) if yes == wanted]
    for wanted in (True, False)
  )
  return pure, numbers, constants
