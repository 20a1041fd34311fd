"""Multi-head attention pooling: a learned query asks all positions."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense, layer_norm
from jattn.layouts import Array, Layouts, Linear, Linen, Norm
from jattn.ops import Init, attention_weights, for_each_image, reshape, unmasked, weigh
from jattn.settings import check_counts
from jattn.types import AttentionMap, Pooled


class LatentAttentionPool(nn.Module):
  """``v = y + MLP(LN(y))`` with ``y = W_O sum_i a_i W_V x_i + b`` and a learned query (MAP).

  ``a = softmax_i(q^T k_i / sqrt(D))`` by heads, ``q = W_Q latent + b_Q``, ``k_i = W_K x_i + b_K``;
  the MLP has one hidden layer with GELU, the norm epsilon 1e-6, and there is no residual around the
  attention. The pooling by multi-head attention of the Set Transformer (Lee et al. 2018, arXiv
  1810.00825) as the vision transformers of Zhai et al. 2021, arXiv 2106.04560, have it.

  ``big_vision`` (the authors' code) has the tanh form of GELU and starts the latent Xavier-uniform;
  ``timm`` (as in its vision transformers) has the exact GELU and starts it normal with standard
  deviation ``1 / sqrt(C)``. The bias of the keys cannot move the vector: softmax ignores it.

  Map: ``weights``, kind ``pool``, [B, M, H, W].

  Attributes:
    num_heads: M.
    mlp_ratio: hidden width of the MLP over C.
    variant: 'big_vision' or 'timm'.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what layers and products are computed in; None is the input's type.
  """

  num_heads: int = 8
  mlp_ratio: float = 4.0
  variant: Literal['big_vision', 'timm'] = 'big_vision'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'latent': Array('latent'),
    'query': Linear('q'),
    'key': Linear('kv', 0, 2),
    'value': Linear('kv', 1, 2),
    'out': Linear('proj'),
    'norm': Norm('norm'),
    'expand': Linear('mlp.fc1'),
    'reduce': Linear('mlp.fc2'),
  }

  @property
  def big_vision_names(self) -> Layouts:
    """How big_vision's ``MAPHead`` calls and stores the layers."""
    attention = 'MultiHeadDotProductAttention_0'
    return {
      'latent': Array('probe'),
      'query': Linen(f'{attention}/query', heads=self.num_heads),
      'key': Linen(f'{attention}/key', heads=self.num_heads),
      'value': Linen(f'{attention}/value', heads=self.num_heads),
      'out': Linen(f'{attention}/out', heads=self.num_heads, inputs=True),
      'norm': Linen('LayerNorm_0'),
      'expand': Linen('MlpBlock_0/Dense_0'),
      'reduce': Linen('MlpBlock_0/Dense_1'),
    }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, C]; ``mask`` bool [B, H, W] is True where a position takes part.

    Raises:
      ValueError: ``num_heads`` does not divide C, or ``variant`` is neither of the two.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    x = unmasked(x, mask)
    batch, height, width, channels = x.shape
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    if self.variant not in ('big_vision', 'timm'):
      raise ValueError(f"{self.variant=} must be 'big_vision' or 'timm'")
    if mask is not None:
      mask = reshape(mask, batch, 1, 1, height * width)
    by_authors = self.variant == 'big_vision'
    start = (
      nn.initializers.xavier_uniform() if by_authors else nn.initializers.normal(channels**-0.5)
    )
    latent = self.param('latent', start, (1, 1, channels), jnp.float32)

    def layer(name: str, tokens: jax.Array, features: int) -> jax.Array:
      settings = {'initialization': self.initialization, 'dtype': self.dtype}
      return dense(features, inputs=tokens.shape[-1], name=name, **settings)(tokens)

    def project(name: str, tokens: jax.Array) -> jax.Array:
      out = layer(name, tokens, channels)
      return reshape(out, batch, -1, self.num_heads, channels // self.num_heads)

    tokens = reshape(x, batch, height * width, channels)
    query = project('query', for_each_image(latent[0], x).astype(x.dtype))
    weights = attention_weights(query, project('key', tokens), mask=mask)
    y = reshape(weigh(weights, project('value', tokens)), batch, channels)
    y = layer('out', y, channels)
    norm = layer_norm(name='norm', dtype=self.dtype)
    hidden = layer('expand', norm(y), max(1, int(self.mlp_ratio * channels)))
    vector = y + layer('reduce', nn.gelu(hidden, approximate=by_authors), channels)
    weights = reshape(weights, batch, self.num_heads, height, width)
    return Pooled(vector, {'weights': AttentionMap(weights, 'pool', (height, width))})
