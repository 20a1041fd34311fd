"""Sequence pooling of the compact convolutional transformer."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.ops import Init, accumulation_dtype, masked_softmax, unmasked, weighted_average
from jattn.types import AttentionMap, Pooled


class SeqPool(nn.Module):
  """``v = sum_i alpha_i h_i`` with ``alpha = softmax_i(w^T h_i + b)`` (SeqPool).

  Hassani et al. 2021 (CCT), arXiv 2104.05704. The same function as ``WeightedAverage`` with its
  linear score and one map, but for the bias b, which softmax ignores: its gradient is zero. It is
  kept because the authors' layer has it, and their weights fit. The transformer's last norm comes
  before the pooling and is not part of it.

  Map: ``weights``, kind ``pool``, [B, 1, H, W].

  Attributes:
    initialization: how the score starts, as Flax, PyTorch or He et al. start it.
  """

  initialization: Init = 'flax'

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, C]; ``mask`` bool [B, H, W] is True where a position takes part."""
    del train
    chex.assert_rank(x, 4)
    x = unmasked(x, mask)
    score = dense(1, inputs=x.shape[-1], name='score', initialization=self.initialization)
    scores = score(x.astype(accumulation_dtype(x))).transpose(0, 3, 1, 2)
    if mask is not None:
      mask = mask[:, None]
    weights = masked_softmax(scores, mask=mask, axis=(2, 3))
    maps = {'weights': AttentionMap(weights, 'pool', x.shape[1:3])}
    return Pooled(jnp.squeeze(weighted_average(x, weights), axis=1), maps)
