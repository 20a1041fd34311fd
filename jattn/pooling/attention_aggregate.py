"""Aggregation: the attention weights times the feature map, then average or max pooling."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.ops import attention_aggregate, masked_softmax, reshape
from jattn.ops.pooling import Reduction
from jattn.pooling.score import Score, ScoreKind
from jattn.settings import check_counts
from jattn.types import AttentionMap, Pooled


class AttentionAggregate(nn.Module):
  """``pool_i(alpha_i h_i)`` with ``alpha = softmax_i(s_i)`` and an average, a maximum or both.

  The average is weighted-average attention divided by N, so it shrinks as the grid grows;
  ``rescale`` multiplies the weights by N, which makes uniform attention the plain pooling.

  Map: ``weights``, kind ``pool``, [B, M, H, W], before any rescaling.

  Attributes:
    reduce: 'average', 'max' or 'both' (side by side, average first).
    score: 'linear', 'tanh' or 'gated', as for the weighted average.
    hidden: hidden width of the tanh and gated scores.
    num_maps: M.
    rescale: whether the weights are multiplied by N.
    dtype: what the hidden layers of the score are computed in; None is the input's type.
  """

  reduce: Reduction = 'average'
  score: ScoreKind = 'linear'
  hidden: int = 128
  num_maps: int = 1
  rescale: bool = True
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Pooled:
    """[B, H, W, C] -> [B, M*C], or [B, M*2C] for 'both'."""
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    batch, height, width, _ = x.shape
    scores = Score(self.score, self.hidden, self.num_maps, self.dtype, name='score')(x)
    weights = masked_softmax(scores, axis=(2, 3))
    factor = height * width if self.rescale else 1
    vector = attention_aggregate(x, weights * factor, reduce=self.reduce)
    maps = {'weights': AttentionMap(weights, 'pool', (height, width))}
    return Pooled(reshape(vector, batch, -1), maps)
