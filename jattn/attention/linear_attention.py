"""Linear attention: self-attention with a product of features instead of the softmax."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.ops import (
  Init,
  accumulation_dtype,
  linear_attend,
  linear_weights,
  reshape,
  scaled_exponentials,
)
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class LinearAttention(nn.Module):
  """``o_i = phi(q_i) (sum_j phi(k_j) v_j^T) / (phi(q_i) . sum_j phi(k_j))``, phi = elu + 1.

  Katharopoulos et al. 2020, arXiv 2006.16236, not causal. ``q``, ``k`` and ``v`` are linear in x.
  Time and memory are linear in N: the two sums are taken before any query is looked at. phi is
  ``exp(t)`` below zero and ``1 + t`` above; its logarithm is what is computed, so that features far
  below zero do not divide zero by zero, and no epsilon is needed. An output projection only if
  ``out_features`` is given.

  Map: ``weights``, kind ``position``, [B, M, Q, K] over the H x W grid, the
  ``phi(q_i) . phi(k_j)`` over their sum that the formula implies. It is N x N and computed beside
  the features, not on the way to them: under ``jit`` it costs nothing unless it is read.

  Attributes:
    num_heads: M, number of maps.
    qk_features: width of all query heads together; None is C.
    v_features: width of the output before the projection, all heads together; None is C.
    out_features: width of the output projection; None leaves it out.
    use_bias: whether the projections have a bias.
    initialization: how the projections start, as Flax, PyTorch or He et al. start them.
    dtype: what the projections are computed in; None is the input's type.
  """

  num_heads: int = 1
  qk_features: int | None = None
  v_features: int | None = None
  out_features: int | None = None
  use_bias: bool = True
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C'] and the map ``weights``.

    Raises:
      ValueError: the number of heads does not divide a width.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    batch, height, width, channels = x.shape
    qk_features = channels if self.qk_features is None else self.qk_features
    v_features = channels if self.v_features is None else self.v_features
    for name, features in (('qk_features', qk_features), ('v_features', v_features)):
      if features % self.num_heads:
        raise ValueError(f'{self.num_heads=} must divide {name}={features}')

    def project(name: str, features: int, x: jax.Array) -> jax.Array:
      return dense(
        features,
        inputs=x.shape[-1],
        name=name,
        initialization=self.initialization,
        use_bias=self.use_bias,
        dtype=self.dtype,
      )(x)

    def heads(name: str, features: int) -> jax.Array:
      return reshape(project(name, features, x), batch, height * width, self.num_heads, -1)

    q, k = scaled_exponentials(
      _log_feature(heads('query', qk_features)), _log_feature(heads('key', qk_features))
    )
    out = linear_attend(q, k, heads('value', v_features))
    out = reshape(out, batch, height, width, v_features)
    if self.out_features is not None:
      out = project('out', self.out_features, out)
    weights = linear_weights(q, k)
    return Attended(out, {'weights': AttentionMap(weights, 'position', (height, width))})


def _log_feature(t: jax.Array) -> jax.Array:
  """``log(elu(t) + 1)``: t below zero, log(1 + t) above; in float32 at least."""
  t = t.astype(accumulation_dtype(t))
  return jnp.where(t > 0, jnp.log1p(jnp.maximum(t, 0)), t)
