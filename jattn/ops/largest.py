"""The maximum along axes, with a gradient that is always a number."""

import functools

import jax
import jax.numpy as jnp

from jattn.ops.softmax import accumulation_dtype


def largest(x: jax.Array, axis: int | tuple[int, ...], *, keepdims: bool = False) -> jax.Array:
  """``y = max_i x_i`` along ``axis``; ``dy = sum of dx_i / n`` over the n places where ``x_i = y``.

  As ``jnp.max``, but for two things. The places are counted in float32 at least: a channel that is
  zero everywhere has more of them than bfloat16 can count. And where a compiler computes ``x``
  twice and rounds it otherwise the second time, so that it equals ``y`` nowhere, the gradient is
  zero and not 0 / 0.

  Args:
    x: floating.
    axis: one or more.
    keepdims: whether these axes stay, with length one.

  Returns:
    The maximum, in the type of ``x``.

  >>> jax.grad(lambda x: largest(x, 0))(jnp.array([3.0, 1.0, 3.0])).tolist()
  [0.5, 0.0, 0.5]
  """
  kept = _largest(x, axis)
  return kept if keepdims else jnp.squeeze(kept, axis)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _largest(x, axis):
  return jnp.max(x, axis=axis, keepdims=True)


@_largest.defjvp
def _tangent(axis, primals, tangents):
  (x,), (dx,) = primals, tangents
  y = _largest(x, axis)
  there = (x == y).astype(accumulation_dtype(x))
  share = there / jnp.maximum(jnp.sum(there, axis=axis, keepdims=True), 1)
  return y, jnp.sum(share * dx.astype(share.dtype), axis=axis, keepdims=True).astype(x.dtype)
