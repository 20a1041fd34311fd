"""Log-sum-exp pooling: a smooth maximum."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.ops import accumulation_dtype, unmasked
from jattn.types import Pooled


class LogSumExp(nn.Module):
  """``v_c = (1/r) log((1/N) sum_i exp(r h_ic))`` (LSE), between the average and the maximum.

  Pinheiro & Collobert 2015, arXiv 1411.6228. A small sharpness r is near the average and a large
  one near the maximum; ``max - log(N)/r <= v <= max`` and ``v >= average``.

  No map: ``softmax_i(r h_ic)`` is the derivative of v_c, another one for each channel, but not the
  weights of an average that gives v_c.

  Attributes:
    sharpness: r, positive, in one over the features' unit.
  """

  sharpness: float = 5.0

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, C]; ``mask`` bool [B, H, W] is True where a position takes part.

    An image with all positions masked gives zeros.

    Raises:
      ValueError: ``sharpness`` is not positive.
    """
    del train
    chex.assert_rank(x, 4)
    x = unmasked(x, mask)
    if self.sharpness <= 0:
      raise ValueError(f'{self.sharpness=} must be positive')
    dtype = accumulation_dtype(x)
    scaled = self.sharpness * x.astype(dtype)
    if mask is None:
      mean = jax.nn.logsumexp(scaled, axis=(1, 2)) - math.log(x.shape[1] * x.shape[2])
      return Pooled((mean / self.sharpness).astype(x.dtype))
    count = jnp.sum(mask, axis=(1, 2), dtype=dtype)[:, None]
    total = jax.nn.logsumexp(
      scaled, axis=(1, 2), where=mask[..., None] | (count == 0)[..., None, None]
    )
    mean = total - jnp.log(jnp.maximum(count, 1))
    return Pooled(jnp.where(count > 0, mean / self.sharpness, 0).astype(x.dtype))
