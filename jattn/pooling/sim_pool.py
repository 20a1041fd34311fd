"""SimPool: one step of attention whose query is the global average."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense, layer_norm
from jattn.ops import (
  Init,
  accumulation_dtype,
  attention_weights,
  global_average,
  largest,
  reshape,
  unmasked,
  weigh,
)
from jattn.settings import check_counts
from jattn.types import AttentionMap, Pooled


class SimPool(nn.Module):
  """``z = (sum_i a_i (v_i - min v + eps)^gamma)^(1/gamma)``, ``a = softmax_i(q^T k_i / sqrt(D))``.

  ``q = W_Q (1/N) sum_i x_i``, ``k_i = W_K v_i`` and ``v = LN(x)`` (epsilon 1e-6). Psomas et al.
  2023, arXiv 2309.06891. ``min v`` is the least number of the image, over positions and channels;
  the authors' code takes that of the whole batch, so that an image's vector depends on its
  neighbours. The authors use gamma 2 for convolutional networks and 1.25 for transformers;
  without gamma ``z = sum_i a_i v_i``. The values have no projection and the vector none either.

  Map: ``weights``, kind ``pool``, [B, M, H, W], the a of each head.

  Attributes:
    num_heads: M; head m weighs channels m C/M .. (m + 1) C/M.
    gamma: the exponent, not zero; None is the plain weighted average of v.
    eps: what keeps the shifted values positive.
    initialization: how the projections start, as Flax, PyTorch or He et al. start them.
    dtype: what norm and projections are computed in; None is the input's type.
  """

  num_heads: int = 1
  gamma: float | None = 2.0
  eps: float = 1e-6
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, C]; ``mask`` bool [B, H, W] is True where a position takes part.

    Raises:
      ValueError: ``num_heads`` does not divide C, ``gamma`` is zero or ``eps`` is not positive.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    x = unmasked(x, mask)
    batch, height, width, channels = x.shape
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    if self.gamma == 0:
      raise ValueError(f'{self.gamma=} must not be zero; None is the plain average')
    if self.eps <= 0:
      raise ValueError(f'{self.eps=} must be positive')
    kept = jnp.ones(x.shape[:3], bool) if mask is None else mask
    kept = reshape(kept, batch, height * width)

    norm = layer_norm(name='norm', dtype=self.dtype)
    tokens = norm(reshape(x, batch, height * width, channels))
    layer = {'inputs': channels, 'use_bias': False, 'initialization': self.initialization}
    query = dense(channels, name='query', dtype=self.dtype, **layer)(global_average(x, mask=mask))
    key = dense(channels, name='key', dtype=self.dtype, **layer)(tokens)
    split = (batch, -1, self.num_heads, channels // self.num_heads)
    weights = attention_weights(
      reshape(query, *split), reshape(key, *split), mask=kept[:, None, None, :]
    )

    value = tokens.astype(accumulation_dtype(tokens))
    if self.gamma is None:
      vector = weigh(weights, reshape(value, *split))
    else:
      inside = jnp.where(kept[..., None], value, jnp.inf)
      least = -largest(-inside, (1, 2), keepdims=True)
      # A value that is computed again for this, and rounded otherwise, may be less than the least.
      value = jnp.where(kept[..., None] & (value > least), value - least, 0) + self.eps
      vector = _power_mean(weights, reshape(value, *split), self.gamma)
      vector = jnp.where(jnp.any(kept, axis=1)[:, None, None, None], vector, 0)
    vector = reshape(vector, batch, channels)
    weights = reshape(weights, batch, self.num_heads, height, width)
    maps = {'weights': AttentionMap(weights, 'pool', (height, width))}
    return Pooled(vector.astype(tokens.dtype), maps)


def _power_mean(weights: jax.Array, values: jax.Array, gamma: float) -> jax.Array:
  """``(sum_k a_k v_k^gamma)^(1/gamma)`` by way of logarithms, as a high power has no float32.

  Args:
    weights: [B, M, 1, K], the a; all zero gives one.
    values: [B, K, M, D], above zero.
    gamma: the exponent.

  Returns:
    [B, 1, M, D].
  """
  some = weights != 0  # so is NaN, which must not vanish
  none = jnp.where(jnp.any(some, axis=-1, keepdims=True), -jnp.inf, 0)
  logs = jnp.where(some, jnp.log(jnp.where(some, weights, 1)), none)
  terms = jnp.transpose(logs, (0, 3, 1, 2)) + gamma * jnp.log(values)
  return jnp.exp(jax.nn.logsumexp(terms, axis=1, keepdims=True) / gamma)
