"""Query-key-value attention as mathematics: no parameters, any leading dimensions."""

import chex
import jax
import jax.numpy as jnp

from jattn.ops.attention_choice import Implementation, choose_implementation, refusal
from jattn.ops.attention_operands import Pairs, all_pairs, check_attention, check_groups
from jattn.ops.chunked_attention import chunked_attend
from jattn.ops.cudnn_attention import cudnn_attend
from jattn.ops.pallas_attention import pallas_attend
from jattn.ops.reshape import reshape
from jattn.ops.softmax import accumulation_dtype, masked_softmax


def attention_weights(
  q: jax.Array,
  k: jax.Array,
  *,
  bias: Pairs | None = None,
  mask: Pairs | None = None,
  scale: float | jax.Array | None = None,
) -> jax.Array:
  """Where each query looks: ``A = softmax(scale * q k^T + bias)`` over the keys.

  Vaswani et al. 2017, arXiv 1706.03762, with ``scale = 1/sqrt(D)`` unless given. Products
  accumulate and the softmax runs in float32 whatever the inputs' type (in float64 for float64).

  Args:
    q: [..., Q, M, D] queries.
    k: [..., K, M', D] keys. M' divides M: query head m reads key head m // (M / M'), so M' = M is
      multi-head, 1 < M' < M grouped-query (Ainslie et al. 2023, arXiv 2305.13245) and M' = 1
      multi-query attention (Shazeer 2019, arXiv 1911.02150).
    bias: broadcasts to [..., M, Q, K], or a function of the indices as ``attend`` takes it; added
      after the scale. -inf counts as masked.
    mask: bool, likewise; True where the query may look.
    scale: factor on ``q k^T``, one number; None is ``1/sqrt(D)``.

  Returns:
    [..., M, Q, K], >= 0, every row sums to one; a fully masked row is zero.

  Raises:
    ValueError: M' does not divide M, a mask is not bool, or the scale is more than one number.
    AssertionError: shapes disagree.

  >>> q, k = jnp.zeros((2, 1, 3)), jnp.ones((4, 1, 3))
  >>> attention_weights(q, k).shape, float(attention_weights(q, k)[0, 0, 0])
  ((1, 2, 4), 0.25)
  """
  check_attention(q, k, mask=mask, scale=scale)
  *leading, num_queries, num_heads, width = q.shape
  num_keys, num_key_heads = k.shape[-3:-1]
  dtype = accumulation_dtype(q, k)
  # einsum may multiply the keys by the queries and transpose N x N numbers, so the order is ours.
  scores = jax.lax.dot_general(
    _by_heads(q, num_key_heads),
    _by_heads(k, num_key_heads),
    (((2,), (2,)), ((0,), (0,))),
    preferred_element_type=dtype,
  )
  scores = reshape(scores, *leading, num_heads, num_queries, num_keys)
  scores = scores * jnp.asarray(width**-0.5 if scale is None else scale, dtype)
  bias, mask = (all_pairs(pairs, num_queries, num_keys) for pairs in (bias, mask))
  if bias is not None:
    scores = scores + jnp.broadcast_to(bias, scores.shape).astype(dtype)
  return masked_softmax(scores, mask=mask)


def weigh(weights: jax.Array, v: jax.Array) -> jax.Array:
  """The weighted values ``O = A V``.

  Args:
    weights: [..., M, Q, K], as ``attention_weights`` gives them.
    v: [..., K, M', D] values; D is free, M' divides M as for the keys.

  Returns:
    [..., Q, M, D] in the type of ``v``, accumulated in float32.

  Raises:
    ValueError: M' does not divide M.
    AssertionError: shapes disagree.

  >>> weigh(jnp.full((1, 1, 2), 0.5), jnp.array([[[1.0]], [[3.0]]])).tolist()
  [[[2.0]]]
  """
  chex.assert_rank(weights, v.ndim)
  chex.assert_equal_shape_prefix((weights, v), v.ndim - 3)
  chex.assert_axis_dimension(weights, -1, v.shape[-3])
  *leading, num_heads, num_queries, num_keys = weights.shape
  num_value_heads, width = v.shape[-2:]
  check_groups(num_heads, num_value_heads)
  out = jax.lax.dot_general(
    reshape(weights, -1, num_heads // num_value_heads * num_queries, num_keys).astype(v.dtype),
    _by_heads(v, num_value_heads),
    (((2,), (1,)), ((0,), (0,))),
    preferred_element_type=accumulation_dtype(v),
  )
  out = jnp.moveaxis(reshape(out, *leading, num_heads, num_queries, width), -2, -3)
  return out.astype(v.dtype)


def _by_heads(x: jax.Array, key_heads: int) -> jax.Array:
  """[..., N, M, D] -> [B M', M / M' * N, D]; one axis of batches, as XLA's CPU copies with more."""
  return reshape(jnp.moveaxis(x, -2, -3), -1, x.shape[-2] // key_heads * x.shape[-3], x.shape[-1])


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: Pairs | None = None,
  mask: Pairs | None = None,
  scale: float | jax.Array | None = None,
  implementation: Implementation | None = None,
) -> jax.Array:
  """Attention: ``O = softmax(scale * q k^T + bias) v``, rows over the keys.

  ``attention_weights`` followed by ``weigh``; see those for the formula, types and heads. The width
  of the values is free: it need not be the width of the keys. Every implementation gives the same
  numbers to rounding:

  - ``'dense'`` forms the map. The only one with forward mode and second derivatives.
  - ``'chunked'`` goes over blocks of queries and keys (``chunked_attend``): memory for the operands
    and one block, forward and backward. Any platform, type, bias and mask.
  - ``'cudnn'``: the kernel of cuDNN, 16-bit types on an NVIDIA GPU.
  - ``'pallas'``: a kernel of ours for NVIDIA GPUs, no bias and no mask.
  - None chooses by platform, type and size from ``attention_table.TABLE``, and ``'chunked'`` where
    the map would be large.

  Args:
    q: [..., Q, M, D].
    k: [..., K, M', D], M' divides M.
    v: [..., K, M', D'].
    bias: broadcasts to [..., M, Q, K], or a function ``bias(query_indices, key_indices)`` of int32
      [Q'] and [K'] -> [M or 1, Q', K'], such as ``relative_bias`` makes, so that 'chunked' never
      forms all pairs. Gradients flow into the arrays that the function closes over.
    mask: bool, likewise; True where the query may look.
    scale: factor on ``q k^T``, one number; None is ``1/sqrt(D)``.
    implementation: one of the above.

  Returns:
    [..., Q, M, D'] in the type of ``v``. A fully masked query gives zeros.

  Raises:
    ValueError: M' does not divide M, a mask is not bool, the scale is more than one number, or the
      implementation cannot do this here.
    AssertionError: shapes disagree.

  >>> q, k, v = jnp.zeros((5, 1, 8)), jnp.ones((7, 1, 8)), jnp.ones((7, 1, 2))
  >>> attend(q, k, v).shape
  (5, 1, 2)
  >>> earlier = lambda i, j: (j[None, :] <= i[:, None])[None]
  >>> attend(q, k, v, mask=earlier, implementation='chunked')[0, 0].tolist()
  [1.0, 1.0]
  """
  check_attention(q, k, v, mask=mask, scale=scale)
  if implementation is None:
    implementation = choose_implementation(q, k, v, bias=bias, mask=mask)
  elif why := refusal(implementation, q, k, v, bias=bias, mask=mask):
    raise ValueError(f'{implementation=} cannot be used here: {why}')
  if implementation == 'chunked':
    return chunked_attend(q, k, v, bias=bias, mask=mask, scale=scale)[0]
  if implementation == 'cudnn':
    return cudnn_attend(q, k, v, bias=bias, mask=mask, scale=scale)
  if implementation == 'pallas':
    return pallas_attend(q, k, v, scale=scale)[0]
  return weigh(attention_weights(q, k, bias=bias, mask=mask, scale=scale), v)
