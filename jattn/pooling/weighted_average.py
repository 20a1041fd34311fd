"""Weighted-average attention: the mean over positions, with learned weights."""

from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.ops import masked_softmax, reshape, unmasked, weighted_average
from jattn.pooling.score import Score, ScoreKind
from jattn.settings import check_counts
from jattn.types import AttentionMap, Pooled


class WeightedAverage(nn.Module):
  """``v = sum_i alpha_i h_i`` with ``alpha = softmax_i(s_i)``, so ``sum_i alpha_i = 1``.

  The score ``s_i`` is linear in the features, or that of Ilse et al. 2018, arXiv 1802.04712
  (``tanh``, ``gated``). With ``num_maps`` above one the vectors of the maps lie side by side. A
  masked position gets exactly zero.

  Normalised by ``sigmoid`` it is ``alpha_i = sigmoid(s_i + b) / sum_j sigmoid(s_j + b)``: each
  position's part is bounded before it is divided, so that several can count alike. Here the bias
  b, one for each map, moves the weights; a softmax would ignore it.

  Map: ``weights``, kind ``pool``, [B, M, H, W].

  Attributes:
    score: 'linear', 'tanh' or 'gated'.
    hidden: hidden width of the tanh and gated scores.
    num_maps: M.
    dtype: what the hidden layers of the score are computed in; None is the input's type.
    normalise: 'softmax' or 'sigmoid', how scores become weights.
  """

  score: ScoreKind = 'linear'
  hidden: int = 128
  num_maps: int = 1
  dtype: jnp.dtype | None = None
  normalise: Literal['softmax', 'sigmoid'] = 'softmax'

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, M*C]; ``mask`` bool [B, H, W] is True where a position takes part.

    Raises:
      ValueError: ``score`` or ``normalise`` is none of its names.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    x = unmasked(x, mask)
    if self.normalise not in ('softmax', 'sigmoid'):
      raise ValueError(f"{self.normalise=} must be 'softmax' or 'sigmoid'")
    bounded = self.normalise == 'sigmoid'
    settings = (self.score, self.hidden, self.num_maps, self.dtype)
    scores = Score(*settings, use_bias=bounded, name='score')(x)
    if bounded:
      # The same quotient by way of logarithms, which no score takes to 0 / 0.
      scores = jax.nn.log_sigmoid(scores)
    if mask is not None:
      mask = mask[:, None]
    weights = masked_softmax(scores, mask=mask, axis=(2, 3))
    vector = weighted_average(x, weights)
    grid = (x.shape[1], x.shape[2])
    return Pooled(reshape(vector, x.shape[0], -1), {'weights': AttentionMap(weights, 'pool', grid)})
