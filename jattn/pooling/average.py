"""Global average pooling."""

import flax.linen as nn
import jax

from jattn.ops import global_average
from jattn.types import Pooled


class Average(nn.Module):
  """``v = (1/N) sum_i h_i``. No map: every position counts the same.

  Lin et al. 2013, arXiv 1312.4400.
  """

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, C]; ``mask`` bool [B, H, W] is True where a position takes part."""
    del train
    return Pooled(global_average(x, mask=mask))
