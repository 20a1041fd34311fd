"""Gates on features."""

import chex
import jax

from jattn.ops.softmax import accumulation_dtype


def gate(features: jax.Array, *gates: jax.Array) -> jax.Array:
  """``features * gate * ...``, the product taken in float32 and returned in the features' type.

  Args:
    features: [B, H, W, C].
    *gates: each broadcasts to [B, H, W, C], with the same rank.

  Raises:
    AssertionError: a gate has another rank.

  >>> import jax.numpy as jnp
  >>> gate(jnp.full((1, 1, 1, 2), 3.0), jnp.array([[[[0.0, 0.5]]]])).ravel().tolist()
  [0.0, 1.5]
  """
  chex.assert_rank((features, *gates), 4)
  product = features.astype(accumulation_dtype(features))
  for weights in gates:
    product = product * weights
  return product.astype(features.dtype)
