"""Attention over blocks of queries and keys: memory grows with N, not with N x N.

The softmax over a row is put together from blocks of keys with a running maximum and sum (Milakov &
Gimelshein 2018, arXiv 1805.02867; Rabe & Staats 2021, arXiv 2112.05682), and the backward pass
forms each block of the map again from the row's log-sum-exp instead of keeping it (Dao et al. 2022,
arXiv 2205.14135).
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jattn.ops.attention_blocks import (
  heads_apart,
  join_axis,
  open_function,
  pad_axis,
  scan_blocks,
  split_axis,
  sum_to,
)
from jattn.ops.attention_operands import Pairs, check_attention
from jattn.ops.reshape import placed_as_traced, placed_by_xla, reshape
from jattn.ops.softmax import accumulation_dtype, check_mask

_TILE = 2**19  # numbers in a block of scores, all heads and leading dimensions together
_KEYS, _QUERIES = 512, 32  # at most so many keys in a block, and at least so many queries


def chunked_attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: Pairs | None = None,
  mask: Pairs | None = None,
  scale: float | jax.Array | None = None,
  block_size: tuple[int, int] | None = None,
) -> tuple[jax.Array, jax.Array]:
  """``attend`` block by block, and the logarithm of each row's sum of exponentials.

  ``O = softmax(S) V`` and ``lse_q = log sum_k exp(S_qk)`` with ``S = scale * q k^T + bias``, over
  the keys that the mask allows. Forward and backward need memory for the operands and one block of
  ``S``. A bias or mask given as an array is held whole; as a function it is asked block by block,
  and gradients flow into the arrays that the function closes over: they are made arguments, so
  nothing has to be declared. Reverse mode only: ``jax.jvp`` and second derivatives are refused.

  Args:
    q: [..., Q, M, D].
    k: [..., K, M', D], M' divides M.
    v: [..., K, M', D'].
    bias: broadcasts to [..., M, Q, K], or ``bias(query_indices [Q'], key_indices [K'])`` ->
      [M or 1, Q', K']; added after the scale. -inf counts as masked.
    mask: bool, likewise; True where the query may look.
    scale: factor on ``q k^T``; None is ``1/sqrt(D)``.
    block_size: queries and keys in a block; None chooses. Any N is taken, whatever the block.

  Returns:
    O [..., Q, M, D'] in the type of ``v``, and lse [..., M, Q], float32 (float64 for float64
    inputs). A fully masked query has O = 0 and lse = -inf.

  Raises:
    ValueError: M' does not divide M, or a block holds nothing.
    AssertionError: shapes disagree.

  >>> q, k, v = jnp.zeros((5, 1, 8)), jnp.ones((7, 1, 8)), jnp.ones((7, 1, 2))
  >>> out, lse = chunked_attend(q, k, v, block_size=(2, 4))
  >>> out.shape, round(float(jnp.exp(lse[0, 0])), 4)
  ((5, 1, 2), 7.0)
  """
  check_attention(q, k, v, mask=mask, scale=scale)
  *leading, num_queries, num_heads, width = q.shape
  num_keys, key_heads, value_width = v.shape[-3:]
  batch, group = math.prod(leading), num_heads // key_heads
  if block_size is None:
    known = batch if isinstance(batch, int) else 1  # a symbolic batch of jax.export has no size
    block_size = _block_size(known * num_heads, num_queries, num_keys)
  if min(block_size) < 1:
    raise ValueError(f'{block_size=} must be at least (1, 1)')
  plan = _Plan(num_queries, num_keys, min(block_size[0], num_queries), min(block_size[1], num_keys))

  def operand(pairs: Pairs | None) -> tuple[Callable[..., jax.Array] | None, Any, Any]:
    if callable(pairs):
      function, *values = open_function(pairs, (plan.queries, plan.keys), (key_heads, group))
      return placed_as_traced(function, q), *values
    if pairs is None:
      return None, None, ()
    return None, heads_apart(pairs, leading, (key_heads, group), (num_queries, num_keys)), ()

  bias_function, bias_values, bias_constants = operand(bias)
  mask_function, mask_values, mask_constants = operand(mask)
  plan = dataclasses.replace(plan, bias=bias_function, mask=mask_function)
  dtype = accumulation_dtype(q, k, v)
  q = jnp.moveaxis(reshape(q, batch, num_queries, key_heads, group, width), 1, 3)
  out, lse = placed_by_xla(partial(_attend, plan), q, axes=2)(
    q,
    jnp.moveaxis(reshape(k, batch, num_keys, key_heads, width), 1, 2),
    jnp.moveaxis(reshape(v, batch, num_keys, key_heads, value_width), 1, 2),
    jnp.asarray(width**-0.5 if scale is None else scale, dtype),
    bias_values,
    _Fixed(bias_constants, mask_values, mask_constants),
  )
  out = reshape(jnp.moveaxis(out, 3, 1), *leading, num_queries, num_heads, value_width)
  return out, reshape(lse, *leading, num_heads, num_queries)


@dataclasses.dataclass(frozen=True)
class _Plan:
  """What is known before any number is: sizes, and a bias and mask that are functions."""

  num_queries: int
  num_keys: int
  queries: int  # in a block
  keys: int
  bias: Callable[..., jax.Array] | None = None
  mask: Callable[..., jax.Array] | None = None

  def indices(self, i: jax.Array, j: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of the queries of block i and the keys of block j; padding repeats the last of them."""
    rows = jnp.minimum(i * self.queries + jnp.arange(self.queries), self.num_queries - 1)
    return rows, jnp.minimum(j * self.keys + jnp.arange(self.keys), self.num_keys - 1)


class _Fixed(NamedTuple):
  """Operands without a gradient."""

  bias: Any
  mask: Any
  mask_constants: Any


def _block_size(rows: int, num_queries: int, num_keys: int) -> tuple[int, int]:
  """Blocks of some ``_TILE`` scores that leave little padding."""

  def even(size: int, most: int) -> int:
    blocks = -(-size // most)
    return size if blocks == 1 else -(-size // (8 * blocks)) * 8

  keys = even(num_keys, _KEYS)
  return even(num_queries, max(_QUERIES, _TILE // (rows * keys))), keys


# In what follows b are the leading dimensions together, n key heads, g query heads of a key head,
# i queries and j keys of a block, d and e the widths of keys and values.


def _dot(a: jax.Array, b: jax.Array, contract: tuple[Any, Any], dtype) -> jax.Array:
  """Products over b and n, as one axis: with two, XLA's CPU copies more and refuses bfloat16.

  Einsum may swap the two and transpose the result.
  """
  first, second = (_as_matrices(*pair) for pair in ((a, contract[0]), (b, contract[1])))
  dimensions = ((first.axes, second.axes), ((0,), (0,)))
  out = jax.lax.dot_general(first.x, second.x, dimensions, preferred_element_type=dtype)
  return out.reshape(*a.shape[:2], *first.free, *second.free)


class _Matrices(NamedTuple):
  x: jax.Array  # [b * n, ., .]
  axes: tuple[int]  # of it, to contract
  free: tuple[int, ...]  # sizes of the others


def _as_matrices(x: jax.Array, contract: tuple[int, ...]) -> _Matrices:
  """The contracted axes as one and the others as one; each are neighbours."""
  free = tuple(x.shape[axis] for axis in range(2, x.ndim) if axis not in contract)
  inner = math.prod(x.shape[axis] for axis in contract)
  last = contract[-1] == x.ndim - 1
  sides = (math.prod(free), inner) if last else (inner, math.prod(free))
  return _Matrices(x.reshape(-1, *sides), (2 if last else 1,), free)


def _scores(plan, q, k, scale, bias, fixed, i, j) -> jax.Array:
  """[b, n, g, i, j] of block (i, j), -inf where a query may not look; ``bias`` is the block's."""
  s = _dot(q, k, ((4,), (3,)), scale.dtype) * scale
  if bias is not None:
    s = s + jnp.broadcast_to(bias, s.shape).astype(s.dtype)
  allowed = []
  if plan.mask is not None:
    allowed.append(plan.mask(fixed.mask, fixed.mask_constants, *plan.indices(i, j)))
    check_mask(allowed[-1])
  elif fixed.mask is not None:
    allowed.append(_block(fixed.mask, plan, i, j))
  if plan.num_keys % plan.keys:
    real = j * plan.keys + jnp.arange(plan.keys) < plan.num_keys
    allowed.append(real.reshape(1, 1, 1, 1, -1))
  for mask in allowed:
    s = jnp.where(jnp.broadcast_to(mask, s.shape), s, -jnp.inf)
  return s


def _block(array: jax.Array, plan: _Plan, i, j) -> jax.Array:
  """Block (i, j) of a padded bias or mask."""
  for axis, index, size in ((3, i, plan.queries), (4, j, plan.keys)):
    if array.shape[axis] > 1:
      array = jax.lax.dynamic_slice_in_dim(array, index * size, size, axis)
  return array


def _bias_block(plan, bias, fixed, i, j) -> jax.Array | None:
  if plan.bias is not None:
    return plan.bias(bias, fixed.bias, *plan.indices(i, j))
  return None if bias is None else _block(bias, plan, i, j)


def _pad_pairs(array: jax.Array | None, plan: _Plan) -> jax.Array | None:
  if array is None:
    return None
  for axis, size in ((3, plan.queries), (4, plan.keys)):
    if array.shape[axis] > 1:
      array = pad_axis(array, axis, size)
  return array


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(plan, q, k, v, scale, bias, fixed):
  """q [b, n, g, Q, d], k [b, n, K, d], v [b, n, K, e] -> out [b, n, g, Q, e], lse [b, n, g, Q]."""
  return _forward(plan, q, k, v, scale, bias, fixed)[0]


def _padded(plan, bias, fixed):
  bias = bias if plan.bias is not None else _pad_pairs(bias, plan)
  return bias, fixed if plan.mask is not None else fixed._replace(mask=_pad_pairs(fixed.mask, plan))


def _forward(plan, q, k, v, scale, bias, fixed):
  padded, settled = _padded(plan, bias, fixed)
  keys, values = split_axis(k, 2, plan.keys), split_axis(v, 2, plan.keys)
  dtype = scale.dtype

  def rows(_, x):
    i, q_block = x

    def step(carry, x):
      top, total, out = carry
      j, k_block, v_block = x
      tile = _bias_block(plan, padded, settled, i, j)
      s = _scores(plan, q_block, k_block, scale, tile, settled, i, j)
      higher = jnp.maximum(top, s.max(-1))
      finite = jnp.where(higher == -jnp.inf, 0, higher)
      p = jnp.exp(jnp.minimum(s - finite[..., None], 0))  # as in masked_softmax
      shrink = jnp.exp(top - finite)
      out = out * shrink[..., None] + _dot(p.astype(v.dtype), v_block, ((4,), (2,)), dtype)
      return (higher, total * shrink + p.sum(-1), out), None

    shape = q_block.shape[:-1]
    start = (
      jnp.full(shape, -jnp.inf, dtype),
      jnp.zeros(shape, dtype),
      jnp.zeros((*shape, v.shape[-1]), dtype),
    )
    (top, total, out), _ = scan_blocks(step, start, (jnp.arange(len(keys)), keys, values))
    some = jnp.where(total > 0, total, 1)
    lse = jnp.where(total > 0, top + jnp.log(some), -jnp.inf)
    return None, ((out / some[..., None]).astype(v.dtype), lse)

  blocks = split_axis(q, 3, plan.queries)
  _, (out, lse) = scan_blocks(rows, None, (jnp.arange(len(blocks)), blocks))
  out, lse = (join_axis(x, 3, plan.num_queries) for x in (out, lse))
  return (out, lse), (q, k, v, scale, bias, fixed, out, lse)


def _backward(plan, kept, gradients):
  q, k, v, scale, bias, fixed, out, lse = kept
  d_out, d_lse = gradients
  padded, settled = _padded(plan, bias, fixed)
  dtype = scale.dtype
  empty = lse == -jnp.inf
  # exp(s - lse) is then zero in rows without any key, also where s is -inf.
  lse = jnp.where(empty, jnp.inf, lse)
  delta = (out.astype(dtype) * d_out.astype(dtype)).sum(-1) - d_lse
  delta = jnp.where(empty, 0, delta)
  keys, values = split_axis(k, 2, plan.keys), split_axis(v, 2, plan.keys)

  def rows(carry, x):
    i, q_block, q_across, d_block, d_across, lse_block, delta_block = x

    def step(carry, x):
      d_q, d_numbers = carry
      j, k_block, v_block = x
      tile, pull = None, None
      if plan.bias is not None:
        tile, pull = jax.vjp(lambda b: _bias_block(plan, b, settled, i, j), padded)
      elif padded is not None:
        tile = _bias_block(plan, padded, settled, i, j)
      s = _scores(plan, q_block, k_block, scale, tile, settled, i, j)
      p = jnp.exp(jnp.minimum(s - lse_block[..., None], 0))  # never above one
      d_p = _dot(d_block, v_block, ((4,), (3,)), dtype)
      d_s = p * (d_p - delta_block[..., None])
      d_tile = None if tile is None else sum_to(d_s, tile)
      if pull is not None:
        d_numbers = jax.tree.map(jnp.add, d_numbers, pull(d_tile)[0])
        d_tile = None
      d_s = d_s.astype(k.dtype)
      d_q = d_q + _dot(d_s, k_block, ((4,), (2,)), dtype)
      # Keys across, so that the narrow factor is the one laid out anew and not the scores.
      d_k = _dot(q_across, d_s, ((3, 4), (2, 3)), dtype)
      d_v = _dot(d_across, p.astype(v.dtype), ((3, 4), (2, 3)), dtype)
      return (d_q, d_numbers), (d_k, d_v, d_tile)

    d_k, d_v, d_numbers = carry
    start = jnp.zeros(q_block.shape, dtype), d_numbers
    xs = (jnp.arange(len(keys)), keys, values)
    (d_q, d_numbers), (more_k, more_v, d_tiles) = scan_blocks(step, start, xs)
    return (d_k + more_k, d_v + more_v, d_numbers), (d_q, d_tiles)

  across = [split_axis(jnp.moveaxis(x, -1, 2), 4, plan.queries) for x in (q, d_out.astype(v.dtype))]
  blocks = [split_axis(x, 3, plan.queries) for x in (q, d_out.astype(v.dtype), delta)]
  start = (
    *(jnp.zeros((*x.shape[:3], x.shape[4], plan.keys), dtype) for x in (keys, values)),
    jax.tree.map(jnp.zeros_like, bias) if plan.bias is not None else None,
  )
  (d_k, d_v, d_numbers), (d_q, d_tiles) = scan_blocks(
    rows,
    start,
    (
      jnp.arange(len(blocks[0])),
      blocks[0],
      across[0],
      blocks[1],
      across[1],
      split_axis(lse, 3, plan.queries, jnp.inf),
      blocks[2],
    ),
  )
  d_q = join_axis(d_q, 3, plan.num_queries)
  d_k, d_v = (jnp.moveaxis(join_axis(x, 3, plan.num_keys), 3, 2) for x in (d_k, d_v))
  # The scale's gradient is sum_ij d_s_ij (q_i k_j), and d_q is not yet scaled.
  d_scale = (q.astype(dtype) * d_q).sum()
  d_bias = d_numbers if plan.bias is not None else _join_tiles(d_tiles, bias)
  return (
    (d_q * scale).astype(q.dtype),
    (d_k * scale).astype(k.dtype),
    d_v.astype(v.dtype),
    d_scale,
    d_bias,
    None,
  )


def _join_tiles(tiles: jax.Array | None, bias: jax.Array | None) -> jax.Array | None:
  """[blocks of queries, blocks of keys, *block of the bias] -> the shape of the bias."""
  if bias is None:
    return None
  tiles = jnp.swapaxes(tiles, 0, 1)
  across = (
    tiles.sum(1)
    if bias.shape[3] == 1
    else jax.vmap(lambda x: join_axis(x, 3, bias.shape[3]))(tiles)
  )
  return across.sum(0) if bias.shape[4] == 1 else join_axis(across, 4, bias.shape[4])


_attend.defvjp(_forward, _backward)
