"""A residual around any mechanism that starts as the identity."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.types import Attended


class Residual(nn.Module):
  """``x + gamma * mechanism(x)`` with ``gamma`` [C] zero at the start.

  The block begins as the exact identity, so it can be put into a trained network without moving its
  logits. The zero-initialised factor is that of Zhang et al. 2019 (SAGAN), arXiv 1805.08318, here
  one for each channel. The maps are the mechanism's own.

  Attributes:
    mechanism: any module of the mechanism contract whose output has the shape of its input.
  """

  mechanism: nn.Module

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the mechanism's maps.

    Raises:
      ValueError: the mechanism changes the shape.
    """
    chex.assert_rank(x, 4)
    attended = self.mechanism(x, train=train)
    if attended.features.shape != x.shape:
      raise ValueError(
        f'a residual needs a mechanism that keeps the shape; {type(self.mechanism).__name__} '
        f'made {attended.features.shape} of {x.shape}'
      )
    gamma = self.param('gamma', nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
    scaled = attended.features * gamma.reshape(1, 1, 1, -1)  # as LayerScale
    return attended.replace(features=x + scaled.astype(x.dtype))
