"""Average and max pooling together."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.ops import accumulation_dtype, global_average, global_max, reshape
from jattn.types import Pooled


class AverageMax(nn.Module):
  """``v = [mean_i h_i, max_i h_i]``, or half of their sum.

  Side by side (``concatenate``, average first) they are [B, 2C]; ``mean`` is
  ``(mean_i h_i + max_i h_i) / 2``, [B, C]. timm calls them 'catavgmax' and 'avgmax'.

  No map: the maximum looks at a position of its own for each channel.

  Attributes:
    combine: 'concatenate' or 'mean'.
  """

  combine: Literal['concatenate', 'mean'] = 'concatenate'

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, 2C], or [B, C] for 'mean'; ``mask`` bool [B, H, W], True takes part.

    Raises:
      ValueError: ``combine`` is neither of the two.
    """
    del train
    if self.combine not in ('concatenate', 'mean'):
      raise ValueError(f"{self.combine=} must be 'concatenate' or 'mean'")
    pooled = jnp.stack([global_average(x, mask=mask), global_max(x, mask=mask)], axis=1)
    if self.combine == 'concatenate':
      return Pooled(reshape(pooled, x.shape[0], -1))
    return Pooled(jnp.mean(pooled, axis=1, dtype=accumulation_dtype(x)).astype(x.dtype))
