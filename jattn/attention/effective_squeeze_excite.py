"""Effective squeeze-and-excitation: one layer instead of two, and a hard sigmoid."""

from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.layouts import Conv1x1, Layouts
from jattn.ops import Init, accumulation_dtype, gate
from jattn.types import Attended, AttentionMap


class EffectiveSqueezeExcite(nn.Module):
  """``x * hard_sigmoid(W z + b)`` with ``z = (1/N) sum_i x_i``, no reduction of the channels.

  ``hard_sigmoid(t) = min(max(t + 3, 0), 6) / 6``. Lee & Park 2020 (CenterMask), arXiv 1911.06667.

  Map: ``gate``, kind ``gate``, [B, 1, 1, C], in [0, 1].

  Attributes:
    initialization: how the layer starts, as Flax, PyTorch or He et al. start it.
    dtype: what the layer is computed in; None is the input's type.
  """

  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {'excite': Conv1x1('fc')}

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``gate``."""
    del train
    chex.assert_rank(x, 4)
    channels = x.shape[-1]
    z = jnp.mean(x, axis=(1, 2), keepdims=True, dtype=accumulation_dtype(x)).astype(x.dtype)
    excite = dense(
      channels,
      inputs=channels,
      name='excite',
      initialization=self.initialization,
      dtype=self.dtype,
    )
    logits = excite(z)
    weights = nn.hard_sigmoid(logits.astype(accumulation_dtype(logits)))
    return Attended(gate(x, weights), {'gate': AttentionMap(weights, 'gate', x.shape[1:3])})
