"""Softmax over positions that may be masked."""

import functools

import jax
import jax.numpy as jnp


def accumulation_dtype(*arrays: jax.Array) -> jnp.dtype:
  """Returns float32, or float64 when an input is float64: what statistics are kept in.

  >>> accumulation_dtype(jnp.zeros(1, jnp.bfloat16), jnp.zeros(1, jnp.float16))
  dtype('float32')
  """
  with jax.numpy_dtype_promotion('standard'):  # asked for here, whatever the user's setting
    return jnp.promote_types(jnp.result_type(*arrays), jnp.float32)


def check_mask(mask: jax.Array, shape: tuple[int, ...] | None = None) -> None:
  """Checks that a mask is bool, and of a shape if one is given.

  Numbers that are added to scores, as masks of other libraries are, would be taken for their
  opposite: -inf is not zero.

  Raises:
    ValueError: it is not bool, or of another shape.

  >>> check_mask(jnp.array([True, False]), (2,))
  """
  if mask.dtype != jnp.bool_:
    raise ValueError(f'mask must be bool, True where a position takes part, not {mask.dtype}')
  if shape is not None and mask.shape != shape:
    raise ValueError(f'mask has shape {mask.shape} and must have {shape}')


def masked_softmax(
  scores: jax.Array, *, mask: jax.Array | None = None, axis: int | tuple[int, ...] = -1
) -> jax.Array:
  """Softmax that gives masked positions exactly zero.

  ``p_i = m_i exp(s_i) / sum_j m_j exp(s_j)``, computed in float32 (float64 for float64 scores).
  Where every position is masked, or every score is -inf, all weights are zero; neither the value
  nor the gradient is ever NaN because of a mask.

  Args:
    scores: any shape and floating type; -inf counts as masked.
    mask: bool, broadcasts to ``scores``; True where a position takes part.
    axis: the axis or axes over which the weights sum to one.

  Returns:
    Weights of the shape of ``scores``, float32 (float64 for float64 scores).

  Raises:
    ValueError: the mask is not bool.

  >>> masked_softmax(jnp.zeros(4), mask=jnp.array([True, True, False, False])).tolist()
  [0.5, 0.5, 0.0, 0.0]
  >>> masked_softmax(jnp.zeros(2), mask=jnp.array([False, False])).tolist()
  [0.0, 0.0]
  """
  scores = scores.astype(accumulation_dtype(scores))
  if mask is not None:
    check_mask(mask)
    scores = jnp.where(jnp.broadcast_to(mask, scores.shape), scores, -jnp.inf)
  return _softmax(scores, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _softmax(scores: jax.Array, axis: int | tuple[int, ...]) -> jax.Array:
  top = jnp.max(scores, axis=axis, keepdims=True)
  # Scores that a compiler computes again for this, and rounds otherwise, may be above the maximum:
  # those of 1e10 by a thousand.
  exponentials = jnp.exp(jnp.minimum(scores - jnp.where(top == -jnp.inf, 0.0, top), 0.0))
  total = jnp.sum(exponentials, axis=axis, keepdims=True)
  return exponentials / jnp.where(total > 0, total, 1.0)


@_softmax.defjvp
def _derivative(axis, primals, tangents):
  """``dp = p (ds - sum p ds)``: keeps the weights alone, where JAX would keep two such arrays."""
  weights = _softmax(*primals, axis)
  change = weights * tangents[0]
  return weights, change - weights * jnp.sum(change, axis=axis, keepdims=True)
