"""Convolutional block attention: a gate on the channels, then a gate on the positions."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import batch_norm, conv, dense
from jattn.layouts import Conv, Conv1x1, Layouts, Norm
from jattn.ops import Init, accumulation_dtype, gate, largest, round_channels
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class Cbam(nn.Module):
  """``x' = x * g``, then ``x' * s``: ``g`` says which channels count, ``s`` which positions.

  ``g = sigmoid(MLP(mean_i x_i) + MLP(max_i x_i))`` with one shared ``MLP(z) = W2 relu(W1 z)``, and
  ``s = sigmoid(f([mean_c x'_c, max_c x'_c]))`` with ``f`` a 7x7 convolution to one channel.
  Woo et al. 2018, arXiv 1807.06521.

  ===========  ==========  =================  ================  =====================
  variant      MLP biases  input of ``f``     after ``f``       hidden width
  ===========  ==========  =================  ================  =====================
  paper        no          mean, max          nothing           C / reduction, floor
  official     yes         max, mean          norm, keeps 0.99  C / reduction, floor
  timm         no          mean, max          norm, keeps 0.9   C / reduction, nearest
  ===========  ==========  =================  ================  =====================

  ``paper`` is the formula as printed, ``official`` the authors' code; the norm is a batch norm. The
  convolution has no bias anywhere. Where several entries are the maximum, its gradient is shared
  evenly among them.

  Maps, both kind ``gate`` and in (0, 1): ``channel`` [B, 1, 1, C] and ``spatial`` [B, H, W, 1].

  Attributes:
    reduction: C over the hidden width, which is at least one.
    kernel_size: side of the convolution, in positions; odd.
    variant: 'paper', 'official' or 'timm'.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  reduction: int = 16
  kernel_size: int = 7
  variant: Literal['paper', 'official', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'reduce': Conv1x1('channel.fc1'),
    'expand': Conv1x1('channel.fc2'),
    'spatial': Conv('spatial.conv.conv'),
    'norm': Norm('spatial.conv.bn'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the maps ``channel`` and ``spatial``.

    Raises:
      ValueError: ``variant`` is none of the three, or ``kernel_size`` is even.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    if self.variant not in ('paper', 'official', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper', 'official' or 'timm'")
    if self.kernel_size % 2 == 0:
      raise ValueError(f'{self.kernel_size=} must be odd')
    channel = self._channel_gate(x)
    spatial = self._spatial_gate(x * channel, x.dtype, train=train)
    grid = x.shape[1:3]
    maps = {
      'channel': AttentionMap(channel, 'gate', grid),
      'spatial': AttentionMap(spatial, 'gate', grid),
    }
    return Attended(gate(x, channel, spatial), maps)

  def _channel_gate(self, x: jax.Array) -> jax.Array:
    channels = x.shape[-1]
    hidden = channels / self.reduction
    hidden = round_channels(hidden, 1, limit=0) if self.variant == 'timm' else max(1, int(hidden))
    layer = {'initialization': self.initialization, 'dtype': self.dtype}
    layer['use_bias'] = self.variant == 'official'
    reduce = dense(hidden, inputs=channels, name='reduce', **layer)
    expand = dense(channels, inputs=hidden, name='expand', **layer)
    mean = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=accumulation_dtype(x)).astype(x.dtype)
    top = largest(x, (1, 2), keepdims=True)
    logits = expand(nn.relu(reduce(mean))) + expand(nn.relu(reduce(top)))
    return nn.sigmoid(logits.astype(accumulation_dtype(logits)))

  def _spatial_gate(self, x: jax.Array, dtype: jnp.dtype, *, train: bool) -> jax.Array:
    mean, top = jnp.mean(x, axis=-1, keepdims=True), largest(x, -1, keepdims=True)
    parts = (top, mean) if self.variant == 'official' else (mean, top)
    logits = conv(
      1,
      (self.kernel_size, self.kernel_size),
      inputs=2,
      name='spatial',
      use_bias=False,
      initialization=self.initialization,
      dtype=self.dtype,
    )(jnp.concatenate(parts, axis=-1).astype(dtype))
    if self.variant != 'paper':
      momentum = 0.99 if self.variant == 'official' else 0.9
      logits = batch_norm(train=train, name='norm', momentum=momentum, dtype=self.dtype)(logits)
    return nn.sigmoid(logits.astype(accumulation_dtype(logits)))
