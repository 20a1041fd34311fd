"""Efficient channel attention on a ring: the first channel is the last one's neighbour."""

from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import conv
from jattn.layouts import Conv, Layouts
from jattn.ops import Init, accumulation_dtype, channel_kernel_size, gate
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class CircularEfficientChannelAttention(nn.Module):
  """``x * sigmoid(w (*) z)`` with ``z = (1/N) sum_i x_i``, ``(*)`` along the channels, circular.

  ``logit_c = sum_j w_j z_{(c + j - (k - 1) / 2) mod C}``, no bias: channels have no first and no
  last, and a roll of the channels rolls the output. ``k`` is the odd number nearest to
  ``(log2 C + beta) / gamma``, at least 3. The kernel is that of Wang et al. 2020, arXiv 1910.03151,
  who pad with zeros; the ring is of the timm library (``CecaModule``), not of a paper.

  Map: ``gate``, kind ``gate``, [B, 1, 1, C], in (0, 1).

  Attributes:
    kernel_size: k, in channels, odd; None takes it from C.
    gamma: divides ``log2 C + beta``.
    beta: is added to ``log2 C``.
    initialization: how the kernel starts, as Flax, PyTorch or He et al. start it.
    dtype: what the convolution is computed in; None is the input's type.
  """

  kernel_size: int | None = None
  gamma: float = 2
  beta: float = 1
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {'conv': Conv('conv')}

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``gate``.

    Raises:
      ValueError: ``kernel_size`` is even.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    size = self.kernel_size
    if size is None:
      size = channel_kernel_size(x.shape[-1], gamma=self.gamma, beta=self.beta)
    if size % 2 == 0:
      raise ValueError(f'{self.kernel_size=} must be odd')
    z = jnp.mean(x, axis=(1, 2), dtype=accumulation_dtype(x)).astype(x.dtype)
    slide = conv(
      1,
      (size,),
      inputs=1,
      name='conv',
      circular=True,
      initialization=self.initialization,
      use_bias=False,
      dtype=self.dtype,
    )
    logits = slide(z[..., None])[:, None, None, :, 0]
    weights = nn.sigmoid(logits.astype(accumulation_dtype(logits)))
    return Attended(gate(x, weights), {'gate': AttentionMap(weights, 'gate', x.shape[1:3])})
