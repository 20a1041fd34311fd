"""No pooling: every position keeps its place in the vector."""

import flax.linen as nn
import jax

from jattn.ops import flatten
from jattn.types import Pooled


class Flatten(nn.Module):
  """[B, H, W, C] -> [B, H*W*C], rows first, channels last. No map: nothing is weighed."""

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Pooled:
    """[B, H, W, C] -> [B, H*W*C]."""
    del train
    return Pooled(flatten(x))
