"""Bottleneck attention module: one gate from what the channels and what the positions say."""

from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import batch_norm, conv, dense
from jattn.ops import Init, accumulation_dtype, gate
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class Bam(nn.Module):
  """``x * (1 + sigmoid(m_c + m_s))``, or ``m_c * m_s`` instead of the sum.

  ``m_c`` [C]: the global average through a layer to C / r and a layer back to C. ``m_s`` [H, W]: a
  1x1 convolution to C / r, two dilated 3x3 convolutions, a 1x1 convolution to one channel. Relu
  after each layer but the last of both branches. Park et al. 2018, arXiv 1807.06514.

  ``paper``: the sum, and one batch norm at the end of each branch. ``official``, the authors' code:
  the product, and a batch norm before each relu instead. All layers have a bias. In training a bias
  before a batch norm has no gradient, and the channel branch's norms see B numbers of a channel:
  one image alone tells them nothing.

  Map: ``gate``, kind ``gate``, [B, H, W, C], in (1, 2): what the features are multiplied by.

  Attributes:
    reduction: r, C over the hidden width, which is at least one.
    dilation: of the 3x3 convolutions, in positions.
    variant: 'paper' or 'official'.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  reduction: int = 16
  dilation: int = 4
  variant: Literal['paper', 'official'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``gate``.

    Raises:
      ValueError: ``variant`` is neither of the two.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    if self.variant not in ('paper', 'official'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'official'")
    channel, spatial = self._channel(x, train=train), self._spatial(x, train=train)
    channel = channel.astype(accumulation_dtype(channel))
    spatial = spatial.astype(accumulation_dtype(spatial))
    logits = channel + spatial if self.variant == 'paper' else channel * spatial
    weights = 1 + nn.sigmoid(logits)
    return Attended(gate(x, weights), {'gate': AttentionMap(weights, 'gate', x.shape[1:3])})

  def _channel(self, x: jax.Array, *, train: bool) -> jax.Array:
    channels = x.shape[-1]
    hidden = max(1, channels // self.reduction)
    layer = {'initialization': self.initialization, 'dtype': self.dtype}
    z = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=accumulation_dtype(x)).astype(x.dtype)
    z = dense(hidden, inputs=channels, name='channel_reduce', **layer)(z)
    z = nn.relu(self._norm('official', 'channel_norm', z, train=train))
    z = dense(channels, inputs=hidden, name='channel_expand', **layer)(z)
    return self._norm('paper', 'channel_norm', z, train=train)

  def _spatial(self, x: jax.Array, *, train: bool) -> jax.Array:
    channels = x.shape[-1]
    hidden = max(1, channels // self.reduction)
    layer = {'initialization': self.initialization, 'dtype': self.dtype}
    z = dense(hidden, inputs=channels, name='spatial_reduce', **layer)(x)
    z = nn.relu(self._norm('official', 'spatial_norm_0', z, train=train))
    for i in (1, 2):
      name = f'spatial_dilated_{i}'
      z = conv(hidden, (3, 3), inputs=hidden, name=name, dilation=self.dilation, **layer)(z)
      z = nn.relu(self._norm('official', f'spatial_norm_{i}', z, train=train))
    z = dense(1, inputs=hidden, name='spatial_expand', **layer)(z)
    return self._norm('paper', 'spatial_norm', z, train=train)

  def _norm(self, variant: str, name: str, z: jax.Array, *, train: bool) -> jax.Array:
    """A batch norm where this is ``variant``, nothing elsewhere."""
    if self.variant != variant:
      return z
    return batch_norm(train=train, name=name, dtype=self.dtype)(z)
