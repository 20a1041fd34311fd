"""The tutorial's feature extractor: stages of convolution, ReLU and max pooling."""

from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import conv
from jattn.ops import Init, max_pool
from jattn.types import Attended


class ConvStack(nn.Module):
  """For each width: 3x3 convolution (pad 1, bias), ReLU, 2x2 max pooling.

  Attributes:
    widths: channels of each stage; each halves H and W, rounding down.
    initialization: how the convolutions start, as Flax or as PyTorch starts them.
    dtype: what is computed in; None is the input's type.
  """

  widths: Sequence[int] = (64, 128, 256)
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H / 2^S, W / 2^S, widths[-1]] for S stages; no maps.

    Raises:
      ValueError: the images are too small for the number of stages.
    """
    del train
    chex.assert_rank(images, 4)
    smallest = 2 ** len(self.widths)
    if min(images.shape[1:3]) < smallest:
      raise ValueError(
        f'{len(self.widths)} stages need images of at least {smallest}x{smallest}, '
        f'got {images.shape[1]}x{images.shape[2]}'
      )
    x, stages = images, []
    for stage, features in enumerate(self.widths):
      layer = conv(
        features,
        (3, 3),
        inputs=x.shape[-1],
        name=f'conv_{stage}',
        initialization=self.initialization,
        dtype=self.dtype,
      )
      x = max_pool(nn.relu(layer(x)))
      stages.append(x)
    return Attended(x, stages=tuple(stages))
