"""Query-key-value self-attention over the positions of a feature map."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.ops import (
  Init,
  attend,
  attention_weights,
  choose_implementation,
  relative_bias,
  reshape,
  resize_relative,
  weigh,
)
from jattn.ops.attention_choice import Implementation
from jattn.ops.attention_operands import PairFunction
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap

Start = jax.nn.initializers.Initializer


class SelfAttention(nn.Module):
  """Self-attention: every position looks at every position.

  ``Q = X W_Q``, ``K = X W_K``, ``V = X W_V`` (1x1 convolutions), ``A = softmax(Q K^T / sqrt(D))``
  by rows, ``O = A V``. Vaswani et al. 2017, arXiv 1706.03762; over image features Wang et al. 2018,
  arXiv 1711.07971. No norm, no residual; an output projection only if ``out_features`` is given.

  The bias of the key projection cannot move the output: it adds the same number to a whole row of
  scores, which softmax ignores. It is kept because the tutorial's 1x1 convolutions have it.

  With ``relative_bias``, ``A = softmax(Q K^T / sqrt(D) + b)`` with a learned number for each head
  and each difference query - key of two positions, as in Swin (Liu et al. 2021, arXiv 2103.14030);
  they start at normal 0.02. The table [2H-1, 2W-1, M] is that of the grid at which the parameters
  were made, and interpolated linearly at another (``jattn.ops.resize_relative``).

  With ``mimetic``, query and key start alike, ``W_Q W_K^T = mimetic U U^T`` with D orthonormal
  columns U for each head (where D is C or more, ``mimetic I``): as near to a multiple of the
  identity as D columns can be, so that a position first looks at those like itself. Small
  projections drawn apart start with even maps, which average the positions and tell nothing of
  where what is. Trockman and Kolter 2023, arXiv 2305.09828, who add noise. Maps start sharper with
  the factor and with the features' squares: for those of the tutorial's classifier, of size 0.14, a
  factor of 100 does what 3 does behind a layer norm.

  Map: ``weights``, kind ``position``, [B, M, Q, K] over the H x W grid. With an ``implementation``
  other than 'dense' the output is computed without it: a map that nobody reads is then never formed
  and memory grows with N; one that is read costs a second pass, and no gradient reaches the output
  through it, which ``jattn.explain`` needs. The parameters are the same.

  Attributes:
    num_heads: M, number of maps.
    num_key_heads: heads of keys and values; None is ``num_heads``, 1 is multi-query attention.
    qk_features: width of all query heads together; None is C.
    v_features: width of the output before the projection, all heads together; None is C.
    out_features: width of the output projection; None leaves it out.
    use_bias: whether the projections have a bias.
    relative_bias: whether each difference of two positions has a bias.
    mimetic: the factor, above zero, with which query and key start as each other; their biases then
      start at zero. None starts each by itself.
    implementation: of ``jattn.ops.attend``; None chooses by platform and size.
    initialization: how the projections start, as Flax or as PyTorch starts them.
    dtype: what projections and products are computed in; None is the input's type.
  """

  num_heads: int = 1
  num_key_heads: int | None = None
  qk_features: int | None = None
  v_features: int | None = None
  out_features: int | None = None
  use_bias: bool = True
  relative_bias: bool = False
  mimetic: float | None = None
  implementation: Implementation | None = 'dense'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C'] and the map ``weights``.

    Raises:
      ValueError: the number of heads does not divide a width, or ``implementation`` cannot run
        here.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    batch, height, width, channels = x.shape
    key_heads = self.num_heads if self.num_key_heads is None else self.num_key_heads
    qk_features = channels if self.qk_features is None else self.qk_features
    v_features = channels if self.v_features is None else self.v_features
    for name, features in (('qk_features', qk_features), ('v_features', v_features)):
      if features % self.num_heads:
        raise ValueError(f'{self.num_heads=} must divide {name}={features}')
    if self.mimetic is not None and not self.mimetic > 0:
      raise ValueError(f'{self.mimetic=} must be above zero, or None')

    tokens = reshape(x, batch, height * width, channels)

    def project(name: str, heads: int, features: int, start: Start | None = None) -> jax.Array:
      head_width = features // self.num_heads
      out = self._dense(name, heads * head_width, tokens, start)
      return reshape(out, batch, height * width, heads, head_width)

    starts = self._mimetic(channels, key_heads, qk_features // self.num_heads)
    q = project('query', self.num_heads, qk_features, starts[0])
    k = project('key', key_heads, qk_features, starts[1])
    v = project('value', key_heads, v_features)
    bias = self._bias((height, width)) if self.relative_bias else None
    weights = attention_weights(q, k, bias=bias)
    implementation = self.implementation or choose_implementation(q, k, v, bias=bias)
    if implementation == 'dense':
      out = weigh(weights, v)
    else:
      out = attend(q, k, v, bias=bias, implementation=implementation)
    out = reshape(out, batch, height, width, v_features)
    if self.out_features is not None:
      out = self._dense('out', self.out_features, out)
    return Attended(out, {'weights': AttentionMap(weights, 'position', (height, width))})

  def _dense(self, name: str, features: int, x: jax.Array, start: Start | None = None) -> jax.Array:
    return dense(
      features,
      inputs=x.shape[-1],
      name=name,
      initialization=self.initialization if start is None else 'flax',  # whose biases are zero
      start=start,
      use_bias=self.use_bias,
      dtype=self.dtype,
    )(x)

  def _mimetic(
    self, channels: int, key_heads: int, width: int
  ) -> tuple[Start | None, Start | None]:
    """How the kernels of query and key start where they do so together."""
    if self.mimetic is None or not self.is_initializing():
      return None, None
    orthonormal = nn.initializers.orthogonal(self.mimetic**0.5)
    each = [
      orthonormal(key, (channels, width), jnp.float32)
      for key in jax.random.split(self.make_rng('params'), key_heads)
    ]
    shared = self.num_heads // key_heads  # queries of one key
    query = jnp.concatenate([kernel for kernel in each for _ in range(shared)], axis=1)
    key = jnp.concatenate(each, axis=1)
    return (lambda *_: query), (lambda *_: key)

  def _bias(self, grid: tuple[int, int]) -> PairFunction:
    if self.has_variable('params', 'relative_bias'):
      table = self.get_variable('params', 'relative_bias')  # may have been made at another grid
    else:
      shape = (2 * grid[0] - 1, 2 * grid[1] - 1, self.num_heads)
      table = self.param('relative_bias', nn.initializers.normal(0.02), shape, jnp.float32)
    return relative_bias(resize_relative(table, grid), grid, sign='query-key')
