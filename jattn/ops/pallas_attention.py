"""Attention by a kernel of ours for NVIDIA GPUs, with two head widths.

FlashAttention-2 (Dao 2023, arXiv 2307.08691) in Pallas, lowered by Triton: one program for a block
of queries and a head runs over the keys with a running maximum and sum; the backward pass forms
the map again from each row's log-sum-exp, by blocks of queries for ``dq`` and by blocks of keys for
``dk`` and ``dv``. Tested in interpret mode against the other implementations and lowered for CUDA;
neither run nor timed on a GPU.
"""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp

from jattn.ops.attention_operands import Pairs, check_attention


def pallas_attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  scale: float | jax.Array | None = None,
  block_size: tuple[int, int] = (64, 64),
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """``attend`` without bias and mask, and each row's log-sum-exp, as ``chunked_attend`` gives them.

  Reverse mode only.

  Args:
    q: [..., Q, M, D].
    k: [..., K, M', D], M' divides M.
    v: [..., K, M', D'].
    scale: factor on ``q k^T``; None is ``1/sqrt(D)``.
    block_size: queries and keys in a block, powers of two of at least 16; Q and K are free.
    interpret: runs the kernels as XLA operations, slowly, on any platform.

  Returns:
    O [..., Q, M, D'] in the type of ``v`` and lse [..., M, Q] float32.

  Raises:
    ValueError: M' does not divide M.
    AssertionError: shapes disagree.

  >>> q, k, v = jnp.zeros((5, 1, 8)), jnp.ones((7, 1, 8)), jnp.ones((7, 1, 2))
  >>> pallas_attend(q, k, v, block_size=(16, 16), interpret=True)[0].shape
  (5, 1, 2)
  """
  check_attention(q, k, v, scale=scale)
  *leading, num_queries, num_heads, width = q.shape
  num_keys, key_heads, value_width = v.shape[-3:]
  batch = math.prod(leading)
  call = _Call(*block_size, num_keys, num_heads // key_heads, interpret)
  scale = jnp.asarray(width**-0.5 if scale is None else scale, jnp.float32)

  def heads_first(x: jax.Array, block: int) -> jax.Array:
    """[..., N, M, D] -> [batch M, N, D], N a multiple of the block and D a power of two."""
    x = jnp.swapaxes(x.reshape(batch, *x.shape[-3:]), 1, 2)
    widths = ((0, 0), (0, -x.shape[2] % block), (0, _power_of_two(x.shape[3]) - x.shape[3]))
    return jnp.pad(x.reshape(-1, *x.shape[2:]), widths)

  out, lse = _attend(
    call,
    heads_first(q, call.queries),
    heads_first(k, call.keys),
    heads_first(v, call.keys),
    scale,
  )
  out = out[:, :num_queries, :value_width].reshape(batch, num_heads, num_queries, value_width)
  out = jnp.swapaxes(out, 1, 2).reshape(*leading, num_queries, num_heads, value_width)
  return out, lse[:, :num_queries].reshape(*leading, num_heads, num_queries)


def pallas_refusal(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: Pairs | None = None,
  mask: Pairs | None = None,
) -> str | None:
  """Why the kernel cannot do it here, and what can; None if it can.

  >>> pallas_refusal(*3 * [jnp.zeros((3, 1, 8))])
  "it runs on NVIDIA GPUs, not on cpu; use 'chunked'"
  """
  if jax.default_backend() != 'gpu':
    return f"it runs on NVIDIA GPUs, not on {jax.default_backend()}; use 'chunked'"
  if bias is not None or mask is not None:
    return "it takes no bias and no mask; use 'chunked'"
  dtypes = {jnp.dtype(x.dtype).name for x in (q, k, v)}
  if len(dtypes) > 1 or not dtypes <= {'float16', 'bfloat16', 'float32'}:
    return (
      f"it takes one type of at most 32 bits, not {' and '.join(sorted(dtypes))}; use 'chunked'"
    )
  if max(q.shape[-1], v.shape[-1]) > 256:
    return "it takes heads of width 256 at most; use 'chunked'"
  return None


@dataclasses.dataclass(frozen=True)
class _Call:
  """What every kernel of one attention shares."""

  queries: int  # in a block
  keys: int
  num_keys: int  # before padding
  group: int  # query heads of a key head
  interpret: bool


def _power_of_two(width: int) -> int:
  """The next width that Triton multiplies."""
  return max(16, 1 << (width - 1).bit_length())


def _launch(call, kernel, grid, in_specs, out_specs, out_shape, *operands):
  """Each spec is (rows in a block or None for all, width or None, of key heads?)."""
  from jax.experimental import pallas as pl
  from jax.experimental.pallas import triton

  def spec(rows, width, of_keys, moves):
    def place(block, head):
      head = head // call.group if of_keys else head
      at = block if moves else 0
      return (head, at) if width is None else (head, at, 0)

    return pl.BlockSpec((None, rows) if width is None else (None, rows, width), place)

  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[*(spec(*s) for s in in_specs), pl.BlockSpec((1,), lambda *_: (0,))],
    out_specs=[spec(*s) for s in out_specs],
    out_shape=out_shape,
    interpret=call.interpret,
    compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
  )(*operands)


def _product(a, b, **transposed) -> jax.Array:
  """Accumulated in float32; float32 factors are not cut to tf32."""
  from jax.experimental.pallas import triton

  precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return triton.dot(a, b, precision=precision, **transposed).astype(jnp.float32)


def _rows(ref, block, size):
  """Block ``block`` of a reference that holds all rows."""
  from jax.experimental import pallas as pl

  return ref[pl.ds(block * size, size)]


def _scores(call, q, k, scale, block) -> jax.Array:
  """[queries, keys], -inf at padded keys."""
  s = _product(q, k, trans_b=True) * scale
  at = block * call.keys + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
  return jnp.where(at < call.num_keys, s, -jnp.inf)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(call, q, k, v, scale):
  """q [R, Q, d], k [R', K, d], v [R', K, e] -> out [R, Q, e], lse [R, Q]; R = R' group."""
  return _forward(call, q, k, v, scale)[0]


def _forward(call, q, k, v, scale):
  heads, num_queries, width = q.shape
  padded_keys, value_width = v.shape[1:]
  blocks = padded_keys // call.keys

  def kernel(q_ref, k_ref, v_ref, scale_ref, out_ref, lse_ref):
    q, scale = q_ref[...], scale_ref[0]

    def step(j, carry):
      top, total, out = carry
      s = _scores(call, q, _rows(k_ref, j, call.keys), scale, j)
      # Every block holds a real key, so no row is ever without one.
      higher = jnp.maximum(top, jnp.max(s, axis=1))
      p = jnp.exp(s - higher[:, None])
      shrink = jnp.exp(top - higher)
      values = _rows(v_ref, j, call.keys)
      out = out * shrink[:, None] + _product(p.astype(values.dtype), values)
      return higher, total * shrink + jnp.sum(p, axis=1), out

    start = (
      jnp.full((call.queries,), -jnp.inf, jnp.float32),
      jnp.zeros((call.queries,), jnp.float32),
      jnp.zeros((call.queries, value_width), jnp.float32),
    )
    top, total, out = jax.lax.fori_loop(0, blocks, step, start)
    out_ref[...] = (out / total[:, None]).astype(out_ref.dtype)
    lse_ref[...] = top + jnp.log(total)

  out, lse = _launch(
    call,
    kernel,
    (num_queries // call.queries, heads),
    [
      (call.queries, width, False, True),
      (padded_keys, width, True, False),
      (padded_keys, value_width, True, False),
    ],
    [(call.queries, value_width, False, True), (call.queries, None, False, True)],
    [
      jax.ShapeDtypeStruct((heads, num_queries, value_width), v.dtype),
      jax.ShapeDtypeStruct((heads, num_queries), jnp.float32),
    ],
    q,
    k,
    v,
    scale[None],
  )
  return (out, lse), (q, k, v, scale, out, lse)


def _backward(call, kept, gradients):
  q, k, v, scale, out, lse = kept
  d_out, d_lse = gradients
  delta = (out.astype(jnp.float32) * d_out.astype(jnp.float32)).sum(-1) - d_lse
  operands = (q, k, v, d_out.astype(v.dtype), lse, delta, scale[None])
  d_q = _query_gradients(call, *operands)
  d_k, d_v = _key_gradients(call, *operands)
  d_scale = (q.astype(jnp.float32) * d_q).sum()
  d_k, d_v = (x.reshape(-1, call.group, *x.shape[1:]).sum(1) for x in (d_k, d_v))
  return (
    (d_q * scale).astype(q.dtype),
    (d_k * scale).astype(k.dtype),
    d_v.astype(v.dtype),
    d_scale,
  )


def _block_gradients(call, q, k, v, d_out, lse, delta, scale, j):
  """The map and the gradient of its scores in one block; 'dq' and 'dkv' both start here."""
  p = jnp.exp(_scores(call, q, k, scale, j) - lse[:, None])
  return p, p * (_product(d_out, v, trans_b=True) - delta[:, None])


def _query_gradients(call, q, k, v, d_out, lse, delta, scale) -> jax.Array:
  """[R, Q, d] float32, without the scale."""
  heads, num_queries, width = q.shape
  padded_keys, value_width = v.shape[1:]

  def kernel(q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, scale_ref, d_q_ref):
    q, d_out, lse, delta = q_ref[...], d_out_ref[...], lse_ref[...], delta_ref[...]

    def step(j, d_q):
      keys, values = _rows(k_ref, j, call.keys), _rows(v_ref, j, call.keys)
      _, d_s = _block_gradients(call, q, keys, values, d_out, lse, delta, scale_ref[0], j)
      return d_q + _product(d_s.astype(keys.dtype), keys)

    start = jnp.zeros((call.queries, width), jnp.float32)
    d_q_ref[...] = jax.lax.fori_loop(0, padded_keys // call.keys, step, start)

  row = (call.queries, None, False, True)
  [d_q] = _launch(
    call,
    kernel,
    (num_queries // call.queries, heads),
    [
      (call.queries, width, False, True),
      (padded_keys, width, True, False),
      (padded_keys, value_width, True, False),
      (call.queries, value_width, False, True),
      row,
      row,
    ],
    [(call.queries, width, False, True)],
    [jax.ShapeDtypeStruct(q.shape, jnp.float32)],
    *(q, k, v, d_out, lse, delta, scale),
  )
  return d_q


def _key_gradients(call, q, k, v, d_out, lse, delta, scale) -> tuple[jax.Array, jax.Array]:
  """[R, K, d] without the scale and [R, K, e], float32, for each query head."""
  from jax.experimental import pallas as pl

  heads, num_queries, width = q.shape
  padded_keys, value_width = v.shape[1:]

  def kernel(q_ref, k_ref, v_ref, d_out_ref, lse_ref, delta_ref, scale_ref, d_k_ref, d_v_ref):
    keys, values, j = k_ref[...], v_ref[...], pl.program_id(0)

    def step(i, carry):
      d_k, d_v = carry
      q, d_out, lse, delta = (
        _rows(ref, i, call.queries) for ref in (q_ref, d_out_ref, lse_ref, delta_ref)
      )
      p, d_s = _block_gradients(call, q, keys, values, d_out, lse, delta, scale_ref[0], j)
      d_v = d_v + _product(p.astype(d_out.dtype), d_out, trans_a=True)
      return d_k + _product(d_s.astype(q.dtype), q, trans_a=True), d_v

    start = (
      jnp.zeros((call.keys, width), jnp.float32),
      jnp.zeros((call.keys, value_width), jnp.float32),
    )
    # Padded queries have d_out = 0 and delta = 0, and so no part in this.
    d_k_ref[...], d_v_ref[...] = jax.lax.fori_loop(0, num_queries // call.queries, step, start)

  row = (num_queries, None, False, False)
  d_k, d_v = _launch(
    call,
    kernel,
    (padded_keys // call.keys, heads),
    [
      (num_queries, width, False, False),
      (call.keys, width, True, True),
      (call.keys, value_width, True, True),
      (num_queries, value_width, False, False),
      row,
      row,
    ],
    [(call.keys, width, False, True), (call.keys, value_width, False, True)],
    [
      jax.ShapeDtypeStruct((heads, padded_keys, width), jnp.float32),
      jax.ShapeDtypeStruct((heads, padded_keys, value_width), jnp.float32),
    ],
    *(q, k, v, d_out, lse, delta, scale),
  )
  return d_k, d_v


_attend.defvjp(_forward, _backward)
