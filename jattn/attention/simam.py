"""Parameter-free attention: a gate on every number from how far it is from its channel's mean."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.ops import accumulation_dtype, gate
from jattn.types import Attended, AttentionMap


class SimAM(nn.Module):
  """``x * sigmoid(d / (4 (v + l)) + 1/2)``, ``d = (x - mean)^2``, ``v = sum d / (N - 1)``.

  Mean and v are of one channel of one image, over its N positions: a number far from its channel's
  mean is let through more. There is nothing to learn. Yang et al. 2021, ICML, PMLR 139:11863.

  With one position only there is no variance: N - 1 is taken as one, d is zero and the gate
  sigmoid(1/2).

  Map: ``gate``, kind ``gate``, [B, H, W, C], in [0.62, 1].

  Attributes:
    regularisation: l, in the features' units squared, positive; 0.1 in the authors' ImageNet runs.
  """

  regularisation: float = 1e-4

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``gate``.

    Raises:
      ValueError: ``regularisation`` is not positive.
    """
    del train
    chex.assert_rank(x, 4)
    if self.regularisation <= 0:
      raise ValueError(f'{self.regularisation=} must be positive')
    features = x.astype(accumulation_dtype(x))
    d = (features - jnp.mean(features, axis=(1, 2), keepdims=True)) ** 2
    others = max(1, x.shape[1] * x.shape[2] - 1)
    v = jnp.sum(d, axis=(1, 2), keepdims=True) / others
    weights = nn.sigmoid(d / (4 * (v + self.regularisation)) + 0.5)
    return Attended(gate(x, weights), {'gate': AttentionMap(weights, 'gate', x.shape[1:3])})
