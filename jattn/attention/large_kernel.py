"""Large-kernel attention: the features times a wide, cheap convolution of themselves."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import conv, dense
from jattn.ops import Init, gate
from jattn.settings import check_counts
from jattn.types import Attended


class LargeKernel(nn.Module):
  """``y = x . (W3 (W2 * (W1 * x + b1) + b2) + b3)``: a wide convolution, then a product.

  ``W1`` is a depthwise convolution of side 2d - 1, ``W2`` a depthwise one of side ceil(K / d) and
  dilation d, ``W3`` mixes the channels. With K = 21 and d = 3: 5x5, then 7x7 of dilation 3, so that
  a position sees 11 positions to each side. Guo et al. 2022 (Visual Attention Network), arXiv
  2202.09741, equation 3, where the product is the attention; the projections, GELU and shortcut
  around it are the paper's block and not here.

  No map: what multiplies ``x`` has either sign and passes no sigmoid or softmax, on purpose, so it
  is no weight in any of the senses of ``AttentionMap``.

  Attributes:
    kernel_size: K, in positions.
    dilation: d, in positions.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  kernel_size: int = 21
  dilation: int = 3
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C], no map.

    Raises:
      ValueError: ceil(K / d) is even, so that the kernel has no middle.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    channels = x.shape[-1]
    local, wide = 2 * self.dilation - 1, -(-self.kernel_size // self.dilation)
    if wide % 2 == 0:
      raise ValueError(
        f'{self.kernel_size=} over {self.dilation=}, rounded up, must be odd, not {wide}'
      )
    layer = {'inputs': channels, 'initialization': self.initialization, 'dtype': self.dtype}
    depthwise = {'groups': channels, **layer}
    factor = conv(channels, (local, local), name='local', **depthwise)(x)
    factor = conv(channels, (wide, wide), dilation=self.dilation, name='wide', **depthwise)(factor)
    factor = dense(channels, name='mix', **layer)(factor)
    return Attended(gate(x, factor))
