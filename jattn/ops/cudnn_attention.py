"""Attention by cuDNN's fused kernel, through ``jax.nn.dot_product_attention``."""

import functools
import math

import jax
import jax.numpy as jnp

from jattn.ops.attention_operands import Pairs, all_pairs


def cudnn_attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  *,
  bias: Pairs | None = None,
  mask: Pairs | None = None,
  scale: float | None = None,
) -> jax.Array:
  """``attend`` by cuDNN. Operands as there; ``cudnn_refusal`` says where it cannot run.

  The kernel wants keys and values of one width, a multiple of eight: the narrower are filled up
  with zeros, which add nothing to a product. A bias or mask given as a function is asked for all
  pairs.

  Returns:
    [..., Q, M, D'] in the type of ``v``; a fully masked query gives zeros.

  Raises:
    ValueError: ``scale`` is an array; cuDNN takes a number.

  >>> cudnn_refusal(*3 * [jnp.zeros((3, 1, 8))])[:30]
  'it wants 16-bit numbers, not f'
  """
  if isinstance(scale, jax.Array):
    raise ValueError("scale must be a number for 'cudnn'; use 'chunked'")
  *leading, num_queries, num_heads, width = q.shape
  num_keys, _, value_width = v.shape[-3:]
  wide = _kernel_width(width, value_width)
  batch = math.prod(leading)

  def flat(x: jax.Array) -> jax.Array:
    x = x.reshape(batch, *x.shape[-3:])
    return jnp.pad(x, [(0, 0)] * 3 + [(0, wide - x.shape[-1])])

  def pairs(x: Pairs | None) -> jax.Array | None:
    x = all_pairs(x, num_queries, num_keys)
    if x is None:
      return None
    x = jnp.broadcast_to(x, (*leading, *jnp.broadcast_shapes(x.shape[-3:], (1, 1, 1))[-3:]))
    return x.reshape(batch, *x.shape[-3:])

  bias, mask = pairs(bias), pairs(mask)
  if bias is not None:
    allowed = bias > -jnp.inf
    mask = allowed if mask is None else jnp.logical_and(*jnp.broadcast_arrays(mask, allowed))
    bias = jnp.where(allowed, bias, 0).astype(q.dtype)
  out = jax.nn.dot_product_attention(
    flat(q),
    flat(k),
    flat(v),
    bias=bias,
    mask=mask,
    scale=width**-0.5 if scale is None else float(scale),
    implementation=_IMPLEMENTATION,
  )
  if mask is not None:
    # cuDNN masks with a large number, so a row without a key would be the mean.
    seen = jnp.moveaxis(mask.any(-1, keepdims=True), 1, 2)
    out = jnp.where(jnp.broadcast_to(seen, out.shape), out, 0)
  return out[..., :value_width].reshape(*leading, num_queries, num_heads, value_width)


_IMPLEMENTATION = 'cudnn'  # tests put 'xla' here, which takes the same operands


def _kernel_width(*widths: int) -> int:
  return -(-max(widths) // 8) * 8


def cudnn_refusal(q: jax.Array, k: jax.Array, v: jax.Array) -> str | None:
  """Why cuDNN cannot do it here, and what can; None if it can.

  Types and widths are checked first; then forward and backward are compiled and run once at a small
  size, and what came of it is remembered, because a driver may have no kernel where the rules
  allow one (CUDA 13 had none).
  """
  dtypes = {jnp.dtype(x.dtype).name for x in (q, k, v)}
  if len(dtypes) > 1 or not dtypes <= {'float16', 'bfloat16'}:
    return f"it wants 16-bit numbers, not {' and '.join(sorted(dtypes))}; use 'chunked'"
  if jax.default_backend() != 'gpu':
    return f"it runs on NVIDIA GPUs, not on {jax.default_backend()}; use 'chunked'"
  wide = _kernel_width(q.shape[-1], v.shape[-1])
  if wide > 256:
    return f"it takes heads of width 256 at most, not {wide}; use 'chunked'"
  if failed := _probe(dtypes.pop(), wide):
    return f"{failed}; use 'chunked'"
  return None


@functools.cache
def _probe(dtype: str, width: int) -> str | None:
  """What forward and backward of a small attention die of here; None if they live."""
  x = jnp.ones((1, 16, 1, width), dtype)

  def loss(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    return cudnn_attend(q, k, v).astype(jnp.float32).sum()

  try:
    # Also when attend is being traced: the probe is a program of its own.
    with jax.ensure_compile_time_eval():
      jax.block_until_ready(jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(x, x, x))
  except Exception as error:  # whatever cuDNN, XLA or the driver raise
    first = str(error).strip().partition('\n')[0]
    return f'cuDNN failed ({type(error).__name__}: {first[:120]})'
  return None
