"""Generalised-mean pooling: from the average to the maximum by one exponent."""

import math

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.ops import accumulation_dtype, unmasked
from jattn.types import Pooled


class GeneralisedMean(nn.Module):
  """``v_c = ((1/N) sum_i max(h_ic, eps)^p)^(1/p)`` (GeM) with a learned exponent p.

  Radenovic et al. 2018, arXiv 1711.02512. ``p = 1`` is the average of the clipped features and
  ``p -> inf`` their maximum. Features are meant to be positive, as after a ReLU: what is below
  ``eps`` counts as ``eps``. Computed as ``exp((logsumexp_i(p log h_ic) - log N) / p)``, which no
  exponent overflows.

  No map: ``h_ic^p`` weighs each position anew for each channel.

  Attributes:
    power: where p starts; not zero.
    per_channel: whether each channel has its own p, [C], instead of one for all, [1].
    eps: the least feature.
  """

  power: float = 3.0
  per_channel: bool = False
  eps: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, C]; ``mask`` bool [B, H, W] is True where a position takes part.

    An image with all positions masked gives zeros.

    Raises:
      ValueError: ``power`` is zero or ``eps`` is not positive.
    """
    del train
    chex.assert_rank(x, 4)
    x = unmasked(x, mask)
    if self.power == 0 or self.eps <= 0:
      raise ValueError(f'{self.power=} must not be zero, and {self.eps=} must be positive')
    channels = x.shape[-1]
    width = channels if self.per_channel else 1
    power = self.param('p', nn.initializers.constant(self.power), (width,), jnp.float32)
    dtype = accumulation_dtype(x)
    power = jnp.broadcast_to(power.astype(dtype), (1, channels))
    logs = jnp.log(jnp.maximum(x.astype(dtype), self.eps)) * power[:, None, None]
    if mask is None:
      mean = jax.nn.logsumexp(logs, axis=(1, 2)) - math.log(x.shape[1] * x.shape[2])
      return Pooled(jnp.exp(mean / power).astype(x.dtype))
    count = jnp.sum(mask, axis=(1, 2), dtype=dtype)[:, None]
    total = jax.nn.logsumexp(
      logs, axis=(1, 2), where=mask[..., None] | (count == 0)[..., None, None]
    )
    vector = jnp.exp((total - jnp.log(jnp.maximum(count, 1))) / power)
    return Pooled(jnp.where(count > 0, vector, 0).astype(x.dtype))
