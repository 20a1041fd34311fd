"""Global max pooling."""

import flax.linen as nn
import jax

from jattn.ops import global_max
from jattn.types import Pooled


class Max(nn.Module):
  """``v_c = max_i h_ic``. No map: each channel looks at a position of its own."""

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, C]; ``mask`` bool [B, H, W] is True where a position takes part."""
    del train
    return Pooled(global_max(x, mask=mask))
