"""The score that decides how much a position counts."""

from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.ops import accumulation_dtype

ScoreKind = Literal['linear', 'tanh', 'gated']


class Score(nn.Module):
  """One number for each position and map, before the softmax.

  ``linear``: ``s_i = w^T h_i``. ``tanh``: ``s_i = w^T tanh(V h_i)``. ``gated``:
  ``s_i = w^T (tanh(V h_i) * sigmoid(U h_i))``; the last two are equations 8 and 9 of Ilse et al.
  2018, arXiv 1802.04712. ``w`` has no bias unless asked for: softmax would ignore it.

  Attributes:
    kind: 'linear', 'tanh' or 'gated'.
    hidden: rows of V and U.
    num_maps: M, scores for each position.
    dtype: what it is computed in; None is the input's type. The last product is float32 at least.
    use_bias: whether one number for each map is added to its scores.
  """

  kind: ScoreKind = 'linear'
  hidden: int = 128
  num_maps: int = 1
  dtype: jnp.dtype | None = None
  use_bias: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, M, H, W].

    Raises:
      ValueError: ``kind`` is none of the three.
    """
    if self.kind not in ('linear', 'tanh', 'gated'):
      raise ValueError(f"score={self.kind!r} must be 'linear', 'tanh' or 'gated'")
    if self.kind != 'linear':
      hidden = jnp.tanh(dense(self.hidden, inputs=x.shape[-1], name='content', dtype=self.dtype)(x))
      if self.kind == 'gated':
        gate = dense(self.hidden, inputs=x.shape[-1], name='gate', dtype=self.dtype)
        hidden = hidden * nn.sigmoid(gate(x))
      x = hidden
    x = x.astype(accumulation_dtype(x))
    scores = nn.Dense(self.num_maps, use_bias=self.use_bias, name='score')(x)
    return scores.transpose(0, 3, 1, 2)
