"""What every form of attention takes: checked shapes; biases and masks as arrays or functions."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jattn.ops.softmax import check_mask

PairFunction = Callable[[jax.Array, jax.Array], jax.Array]
"""int32 indices of queries [Q'] and of keys [K'], within range -> a number for each pair of them,
[M, Q', K'] or [1, Q', K'], the same for every leading index."""
Pairs = jax.Array | PairFunction


def check_attention(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array | None = None,
  *,
  mask: Pairs | None = None,
  scale: float | jax.Array | None = None,
) -> None:
  """Checks q [..., Q, M, D], k [..., K, M', D] and v [..., K, M', D'] against each other.

  Raises:
    ValueError: M' does not divide M, a mask is not bool, or the scale is more than one number.
    AssertionError: shapes disagree.

  >>> check_attention(jnp.zeros((2, 4, 3)), jnp.zeros((5, 2, 3)), jnp.zeros((5, 2, 8)))
  """
  if q.ndim < 3:
    raise ValueError(f'queries must be [..., Q, M, D], not of shape {q.shape}')
  if mask is not None and not callable(mask):
    check_mask(mask)
  if scale is not None and jnp.shape(scale):
    raise ValueError(
      f'scale must be one number, not of shape {jnp.shape(scale)}: multiply the queries by it'
    )
  chex.assert_rank(k, q.ndim)
  chex.assert_equal_shape_prefix((q, k), q.ndim - 3)
  chex.assert_equal_shape_suffix((q, k), 1)
  check_groups(q.shape[-2], k.shape[-2])
  if v is not None:
    chex.assert_rank(v, k.ndim)
    chex.assert_equal_shape_prefix((k, v), k.ndim - 1)


def check_groups(num_heads: int, num_key_heads: int) -> None:
  """Checks that every key head has as many query heads.

  Raises:
    ValueError: it has not.

  >>> check_groups(4, 2)
  """
  if num_heads % num_key_heads:
    raise ValueError(f'{num_key_heads=} must divide {num_heads=}')


def all_pairs(pairs: Pairs | None, num_queries: int, num_keys: int) -> jax.Array | None:
  """A bias or mask as one array: a function is asked for every pair at once.

  Returns:
    What was given if it is no function, else [M, Q, K] or [1, Q, K].

  >>> all_pairs(lambda i, j: (i[:, None] >= j[None, :])[None], 2, 2).tolist()
  [[[True, False], [True, True]]]
  """
  if not callable(pairs):
    return pairs
  return pairs(jnp.arange(num_queries), jnp.arange(num_keys))
