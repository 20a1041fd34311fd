"""The product of a linear layer, fast on CPU in bfloat16 too."""

import jax
import jax.numpy as jnp
from jax import lax


def dot(
  lhs: jax.Array,
  rhs: jax.Array,
  dimension_numbers: lax.DotDimensionNumbers,
  precision: lax.PrecisionLike = None,
  preferred_element_type: jax.typing.DTypeLike | None = None,
) -> jax.Array:
  """``jax.lax.dot_general`` for ``flax.linen.Dense(dot_general=dot)``.

  For a product of bfloat16 with a bfloat16 result XLA on CPU converts the operands first and takes
  twice as long as for the same with a float32 result, where the processor multiplies bfloat16.
  There the sums are returned as they are, to be rounded after the bias is added.

  Args:
    lhs, rhs, dimension_numbers, precision, preferred_element_type: as for lax.

  Returns:
    As lax; on CPU the product of two bfloat16 arrays is float32 unless another type is asked for.

  >>> dot(jnp.ones((1, 2)), jnp.ones((2, 1)), (((1,), (0,)), ((), ()))).tolist()
  [[2.0]]
  """
  if preferred_element_type is None and lhs.dtype == rhs.dtype == jnp.bfloat16:
    preferred_element_type = jnp.float32 if jax.default_backend() == 'cpu' else None
  return lax.dot_general(
    lhs, rhs, dimension_numbers, precision, preferred_element_type=preferred_element_type
  )
