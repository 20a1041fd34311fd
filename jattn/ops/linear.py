"""Attention whose similarity is a product of features: no softmax, linear in the positions."""

import chex
import jax
import jax.numpy as jnp

from jattn.ops.softmax import accumulation_dtype


def linear_attend(q: jax.Array, k: jax.Array, v: jax.Array, *, eps: float = 0.0) -> jax.Array:
  """``o_i = q_i (sum_j k_j v_j^T) / (q_i . sum_j k_j + eps)``, in O(N) time and memory.

  The mean of the values under ``linear_weights(q, k, eps=eps)``, which is never formed.
  Katharopoulos et al. 2020, arXiv 2006.16236, equation 5.

  Args:
    q: [..., Q, M, D] non-negative features of the queries.
    k: [..., K, M, D] non-negative features of the keys.
    v: [..., K, M, D'] values.
    eps: added to the sum of the weights.

  Returns:
    [..., Q, M, D'] in the type of ``v``, accumulated in float32 (float64 for float64). Zeros where
    the sum is zero.

  >>> q, k = jnp.ones((1, 1, 2)), jnp.array([[[1.0, 0.0]], [[1.0, 2.0]]])
  >>> linear_attend(q, k, jnp.array([[[4.0]], [[8.0]]])).tolist()
  [[[7.0]]]
  """
  chex.assert_equal_rank((q, k, v))
  chex.assert_equal_shape_prefix((k, v), k.ndim - 1)
  dtype = accumulation_dtype(q, k, v)
  q, k, values = (a.astype(dtype) for a in (q, k, v))
  memory = jnp.einsum('...kmd,...kme->...mde', k, values)
  out = jnp.einsum('...qmd,...mde->...qme', q, memory)
  return (out / _total(q, k, eps)[..., None]).astype(v.dtype)


def linear_weights(q: jax.Array, k: jax.Array, *, eps: float = 0.0) -> jax.Array:
  """``A_ij = q_i . k_j / (q_i . sum_j k_j + eps)``, the weights that ``linear_attend`` implies.

  Args:
    q: [..., Q, M, D] non-negative features of the queries.
    k: [..., K, M, D] non-negative features of the keys.
    eps: added to the sum of the weights.

  Returns:
    [..., M, Q, K] float32 (float64 for float64), >= 0. A row sums to one if ``eps`` is zero, to
    less otherwise; it is zero where its features meet no key's.

  >>> q, k = jnp.ones((1, 1, 2)), jnp.array([[[1.0, 0.0]], [[1.0, 2.0]]])
  >>> linear_weights(q, k).tolist(), linear_weights(q, k, eps=4.0).tolist()
  ([[[0.25, 0.75]]], [[[0.125, 0.375]]])
  """
  chex.assert_equal_rank((q, k))
  dtype = accumulation_dtype(q, k)
  q, k = q.astype(dtype), k.astype(dtype)
  products = jnp.einsum('...qmd,...kmd->...mqk', q, k)
  return products / jnp.swapaxes(_total(q, k, eps), -1, -2)[..., None]


def scaled_exponentials(log_q: jax.Array, log_k: jax.Array) -> tuple[jax.Array, jax.Array]:
  """``exp`` of features given by their logarithms, scaled so that the weights stay as they are.

  Weights do not change if feature d of all keys is divided by a number and that of the queries
  multiplied by it, nor if all features of a query are divided by a number. Both are done so that
  each feature's largest key is one and each query's largest feature is one: nothing overflows, and
  the sum of a query's weights is at least one however far below zero the logarithms are.

  Args:
    log_q: [..., Q, M, D].
    log_k: [..., K, M, D].

  Returns:
    Features of the queries and of the keys for ``linear_attend`` and ``linear_weights``, float32
    (float64 for float64), in [0, 1].

  >>> q, k = scaled_exponentials(jnp.full((1, 1, 1), -900.0), jnp.array([[[-800.0]], [[-800.0]]]))
  >>> linear_weights(q, k).tolist()
  [[[0.5, 0.5]]]
  """
  chex.assert_equal_rank((log_q, log_k))
  dtype = accumulation_dtype(log_q, log_k)
  log_q, log_k = log_q.astype(dtype), log_k.astype(dtype)
  top = jax.lax.stop_gradient(jnp.max(log_k, axis=-3, keepdims=True))
  log_q = log_q + top
  largest = jax.lax.stop_gradient(jnp.max(log_q, axis=-1, keepdims=True))
  return jnp.exp(log_q - largest), jnp.exp(log_k - top)


def _total(q: jax.Array, k: jax.Array, eps: float) -> jax.Array:
  """[..., Q, M]: the sum of a query's weights, one where it is zero."""
  total = jnp.einsum('...qmd,...md->...qm', q, jnp.sum(k, axis=-3)) + eps
  return jnp.where(total > 0, total, 1)
