"""Rows of a map that was never formed."""

import jax
import jax.numpy as jnp

from jattn.ops.attention_operands import Pairs, check_attention
from jattn.ops.softmax import accumulation_dtype


def attention_rows(
  q: jax.Array,
  k: jax.Array,
  lse: jax.Array,
  rows: jax.Array,
  *,
  bias: Pairs | None = None,
  mask: Pairs | None = None,
  scale: float | jax.Array | None = None,
) -> jax.Array:
  """Where a few queries look: ``A_rk = exp(S_rk - lse_r)``, rows of ``attention_weights``.

  After ``chunked_attend``, whose ``lse`` normalizes them exactly; memory is for these rows alone.

  Args:
    q: [..., Q, M, D].
    k: [..., K, M', D], M' divides M.
    lse: [..., M, Q], as ``chunked_attend`` gives it for the same bias, mask and scale.
    rows: int [R], which queries, each in 0..Q-1.
    bias: broadcasts to [..., M, Q, K], or a function of indices as ``attend`` takes it.
    mask: bool, likewise.
    scale: factor on ``q k^T``; None is ``1/sqrt(D)``.

  Returns:
    [..., M, R, K], float32 (float64 for float64 inputs); a fully masked row is zero.

  Raises:
    ValueError: M' does not divide M.
    AssertionError: shapes disagree.

  >>> q, k, lse = jnp.zeros((3, 1, 2)), jnp.ones((4, 1, 2)), jnp.full((1, 3), jnp.log(4.0))
  >>> attention_rows(q, k, lse, jnp.array([2])).round(4).tolist()
  [[[0.25, 0.25, 0.25, 0.25]]]
  """
  rows = jnp.asarray(rows)
  check_attention(q, k, mask=mask, scale=scale)
  *leading, num_queries, num_heads, width = q.shape
  num_keys, key_heads = k.shape[-3:-1]
  dtype = accumulation_dtype(q, k)
  few = jnp.take(q, rows, axis=-3)
  few = few.reshape(*leading, len(rows), key_heads, num_heads // key_heads, width)
  s = jnp.einsum('...rngd,...knd->...ngrk', few, k, preferred_element_type=dtype)
  s = s.reshape(*leading, num_heads, len(rows), num_keys)
  s = s * jnp.asarray(width**-0.5 if scale is None else scale, dtype)

  def chosen(pairs: Pairs) -> jax.Array:
    if callable(pairs):
      pairs = pairs(rows, jnp.arange(num_keys))
    elif pairs.ndim > 1 and pairs.shape[-2] == num_queries > 1:
      pairs = jnp.take(pairs, rows, axis=-2)
    return jnp.broadcast_to(pairs, s.shape)

  if bias is not None:
    s = s + chosen(bias).astype(dtype)
  if mask is not None:
    s = jnp.where(chosen(mask), s, -jnp.inf)
  lse = jnp.take(lse, rows, axis=-1)[..., None]
  logs = s - jnp.where(jnp.isfinite(lse), lse, jnp.inf)
  # At most 0 but for rounding; ``minimum`` would halve the gradient of a weight that is one.
  return jnp.exp(jnp.where(logs > 0, 0, logs))
