"""Squeeze-and-excitation: a gate on the channels from their global averages."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import Activation, activation, dense
from jattn.layouts import Conv1x1, Layouts
from jattn.ops import Init, accumulation_dtype, gate, round_channels
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class SqueezeExcite(nn.Module):
  """``x * sigmoid(W2 relu(W1 z + b1) + b2)`` with ``z = (1/N) sum_i x_i``.

  Hu et al. 2018, arXiv 1709.01507. The hidden width is C / reduction, at least one (``paper``), or
  that rounded to a multiple of 8 (``timm``: 8 where C is 64, not 4).

  Map: ``gate``, kind ``gate``, [B, 1, 1, C], in (0, 1).

  Attributes:
    reduction: C over the hidden width.
    variant: 'paper' or 'timm', how the hidden width is rounded.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
    activation: between the layers; 'silu' in EfficientNet, CoAtNet and MaxViT.
  """

  reduction: int = 16
  variant: Literal['paper', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None
  activation: Activation = 'relu'

  timm_names: ClassVar[Layouts] = {'reduce': Conv1x1('fc1'), 'expand': Conv1x1('fc2')}

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``gate``.

    Raises:
      ValueError: ``variant`` is neither of the two, or there is no such activation.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    if self.variant not in ('paper', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'timm'")
    channels = x.shape[-1]
    hidden = channels / self.reduction
    hidden = max(1, int(hidden)) if self.variant == 'paper' else round_channels(hidden, 8, limit=0)
    layer = {'initialization': self.initialization, 'dtype': self.dtype}
    z = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=accumulation_dtype(x)).astype(x.dtype)
    z = dense(hidden, inputs=channels, name='reduce', **layer)(z)
    z = activation(self.activation)(z)
    logits = dense(channels, inputs=hidden, name='expand', **layer)(z)
    weights = nn.sigmoid(logits.astype(accumulation_dtype(logits)))
    maps = {'gate': AttentionMap(weights, 'gate', x.shape[1:3])}
    return Attended(gate(x, weights), maps)
