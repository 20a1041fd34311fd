"""Triplet attention: a gate on each pair of the axes height, width and channels."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import batch_norm, conv
from jattn.ops import Init, accumulation_dtype, largest
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class TripletAttention(nn.Module):
  """``x * (g_hw + g_cw + g_hc) / 3``, ``g = sigmoid(BN(f([max, mean])))`` over the axis left out.

  Each branch takes the maximum and the mean along one axis, two pictures of the other two, and
  turns them into one by a 7x7 convolution without bias: ``g_hw`` of height and width, ``g_cw`` of
  channels (rows of the picture) and width, ``g_hc`` of height and channels. No layer is shared.
  Misra et al. 2020, arXiv 2010.03045; the batch norms keep 0.99 of their running statistics, as in
  the authors' code (PyTorch's momentum 0.01).

  Maps, all kind ``gate`` and in (0, 1): ``height_width`` [B, H, W, 1], ``channel_width``
  [B, 1, W, C] and ``height_channel`` [B, H, 1, C]. The features are the input times their mean, not
  their product.

  Attributes:
    kernel_size: side of the convolutions, in positions or channels; odd.
    initialization: how the convolutions start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  kernel_size: int = 7
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the three maps.

    Raises:
      ValueError: ``kernel_size`` is even.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    if self.kernel_size % 2 == 0:
      raise ValueError(f'{self.kernel_size=} must be odd')
    # Each picture's rows and columns come first, the axis left out last; and back again.
    hw = self._branch('height_width', x, train=train)
    cw = self._branch('channel_width', x.transpose(0, 3, 2, 1), train=train)
    hc = self._branch('height_channel', x.transpose(0, 1, 3, 2), train=train)
    gates = {
      'height_width': hw,
      'channel_width': cw.transpose(0, 3, 2, 1),
      'height_channel': hc.transpose(0, 1, 3, 2),
    }
    out = x.astype(hw.dtype) * sum(gates.values()) / 3
    maps = {name: AttentionMap(g, 'gate', x.shape[1:3]) for name, g in gates.items()}
    return Attended(out.astype(x.dtype), maps)

  def _branch(self, name: str, pictures: jax.Array, *, train: bool) -> jax.Array:
    """[B, rows, columns, left out] -> [B, rows, columns, 1]."""
    top = largest(pictures, -1, keepdims=True)
    mean = jnp.mean(pictures, axis=-1, keepdims=True, dtype=accumulation_dtype(pictures))
    logits = conv(
      1,
      (self.kernel_size, self.kernel_size),
      inputs=2,
      name=name,
      use_bias=False,
      initialization=self.initialization,
      dtype=self.dtype,
    )(jnp.concatenate([top, mean.astype(pictures.dtype)], axis=-1))
    norm = batch_norm(train=train, name=f'{name}_norm', momentum=0.99, dtype=self.dtype)
    logits = norm(logits)
    return nn.sigmoid(logits.astype(accumulation_dtype(logits)))
