"""Which implementation of attention runs: what each can do, and which one is the fastest."""

import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from jattn.ops.attention_operands import Pairs
from jattn.ops.attention_table import TABLE
from jattn.ops.cudnn_attention import cudnn_refusal
from jattn.ops.pallas_attention import pallas_refusal

Implementation = Literal['dense', 'chunked', 'cudnn', 'pallas']

DENSE_LIMIT = 2**28
"""Bytes of a map, all heads and leading dimensions together, from which None is never 'dense'."""


def choose_implementation(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: Pairs | None = None,
  mask: Pairs | None = None,
) -> Implementation:
  """The fastest implementation that can do it, for operands as ``attend`` takes them.

  ``attention_table.TABLE`` says which is the fastest on a platform from which number of pairs
  Q * K on; a platform without a row has 'dense'. Where that one cannot do it, or is 'dense' with a
  map above ``DENSE_LIMIT`` bytes, it is 'chunked'.

  >>> q, k = jnp.zeros((3, 1, 8)), jnp.zeros((4, 1, 8))
  >>> choose_implementation(q, k, k)
  'dense'
  >>> q = jax.ShapeDtypeStruct((1, 16384, 1, 8), jnp.float32)
  >>> choose_implementation(q, q, q)
  'chunked'
  """
  bits = 8 * jnp.dtype(q.dtype).itemsize
  pairs = q.shape[-3] * k.shape[-3]
  chosen = 'dense'
  for least, implementation in TABLE.get((jax.default_backend(), bits), ()):
    if pairs >= least:
      chosen = implementation
  # A symbolic batch, as jax.export has it, counts as one.
  leading = [size for size in q.shape[:-3] if isinstance(size, int)]
  size = math.prod(leading) * q.shape[-2] * pairs * max(4, bits // 8)
  if (chosen == 'dense' and size > DENSE_LIMIT) or refusal(chosen, q, k, v, bias=bias, mask=mask):
    return 'chunked'
  return chosen


def refusal(
  implementation: str,
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: Pairs | None = None,
  mask: Pairs | None = None,
) -> str | None:
  """Why an implementation cannot do it here, and what can; None if it can.

  Raises:
    ValueError: no such implementation.

  >>> q = jnp.zeros((3, 1, 8))
  >>> print(refusal('chunked', q, q, q))
  None
  """
  if implementation not in get_args(Implementation):
    raise ValueError(f'{implementation=} must be one of {get_args(Implementation)} or None')
  if implementation == 'cudnn':
    return cudnn_refusal(q, k, v)
  if implementation == 'pallas':
    return pallas_refusal(q, k, v, bias=bias, mask=mask)
  return None
