"""Class attention: a class token asks itself and all positions."""

from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.layouts import Array, Layouts, Linear
from jattn.ops import Init, attention_weights, for_each_image, reshape, unmasked, weigh
from jattn.settings import check_counts
from jattn.types import AttentionMap, Pooled


class ClassAttention(nn.Module):
  """``v = W_O sum_j a_j W_V z_j + b`` over ``z = [class token; x_1 .. x_N]``, the token learned.

  ``a = softmax_j(q^T k_j / sqrt(D))`` by heads, with the query of the class token alone. Touvron et
  al. 2021 (CaiT), arXiv 2103.17239, equations 3 to 6; residual, norms and layer scale belong to
  their block and are not part of it. The bias of the keys cannot move the vector: softmax ignores
  it.

  Map: ``weights``, kind ``pool``, [B, M, H, W]: ``a_i / sum_k a_k`` over the positions. What the
  class token keeps for itself is left out, so the map says where the rest came from, not how much
  the image counted.

  Attributes:
    num_heads: M.
    out_features: width of the vector; None is C.
    use_bias: whether queries, keys and values have a bias; the output always has.
    initialization: how the projections start, as Flax, PyTorch or He et al. start them; the token
      is normal with standard deviation 0.02.
    dtype: what projections and products are computed in; None is the input's type.
  """

  num_heads: int = 8
  out_features: int | None = None
  use_bias: bool = True
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'token': Array('cls_token'),
    'query': Linear('attn.q'),
    'key': Linear('attn.k'),
    'value': Linear('attn.v'),
    'out': Linear('attn.proj'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, out_features]; ``mask`` bool [B, H, W], True where one takes part.

    An image with all positions masked gives what the class token alone gives.

    Raises:
      ValueError: ``num_heads`` does not divide C.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    x = unmasked(x, mask)
    batch, height, width, channels = x.shape
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    kept = jnp.ones(x.shape[:3], bool) if mask is None else mask
    kept = reshape(kept, batch, 1, 1, height * width)
    everyone = jnp.pad(kept, ((0, 0), (0, 0), (0, 0), (1, 0)), constant_values=True)
    settings = {'inputs': channels, 'initialization': self.initialization, 'dtype': self.dtype}

    def project(name: str, tokens: jax.Array) -> jax.Array:
      out = dense(channels, name=name, use_bias=self.use_bias, **settings)(tokens)
      return reshape(out, batch, -1, self.num_heads, channels // self.num_heads)

    token = self.param('token', nn.initializers.normal(0.02), (1, 1, channels), jnp.float32)
    token = for_each_image(token[0], x).astype(x.dtype)
    tokens = jnp.concatenate([token, reshape(x, batch, height * width, channels)], axis=1)
    query, key = project('query', token), project('key', tokens)
    pooled = weigh(attention_weights(query, key, mask=everyone), project('value', tokens))
    out = channels if self.out_features is None else self.out_features
    vector = dense(out, name='out', **settings)(reshape(pooled, batch, channels))
    # A softmax over the positions alone is the quotient, also where the token keeps nearly all.
    weights = attention_weights(query, key[:, 1:], mask=kept)
    weights = reshape(weights, batch, self.num_heads, height, width)
    return Pooled(vector, {'weights': AttentionMap(weights, 'pool', (height, width))})
