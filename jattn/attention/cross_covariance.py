"""Cross-covariance attention: channels look at channels, over all positions."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.layouts import Array, Layouts, Linear
from jattn.ops import Init, accumulation_dtype, masked_softmax, reshape
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class CrossCovarianceAttention(nn.Module):
  """``o = v A^T`` with ``A = softmax(q_hat^T k_hat / tau)`` by rows, D x D for each head.

  El-Nouby et al. 2021 (XCiT), arXiv 2106.09681. ``q``, ``k`` and ``v`` [N, D] are linear in x; each
  channel (column) of ``q`` and ``k`` is divided by its L2 norm over the positions, or by 1e-12
  where that is more, so that a score is the cosine of two channels. Row d of A says which channels
  make up output channel d. The heads side by side go through an output projection. Time is linear
  in N. One temperature a head, which starts at one and should have no weight decay: the ``paper``
  divides the scores by it, the ``official`` code (and timm) multiplies.

  Map: ``weights``, kind ``channel``, [B, M, D, D]. No map over positions: each position adds to the
  cosines, none is weighed.

  Attributes:
    num_heads: M; divides C, and D = C / M.
    use_bias: whether q, k and v have a bias; the output projection has one.
    variant: 'paper' or 'official'.
    initialization: how the projections start, as Flax, PyTorch or He et al. start them.
    dtype: what the projections are computed in; None is the input's type.
  """

  num_heads: int = 1
  use_bias: bool = True
  variant: Literal['paper', 'official'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'query': Linear('qkv', part=0, parts=3),
    'key': Linear('qkv', part=1, parts=3),
    'value': Linear('qkv', part=2, parts=3),
    'temperature': Array('temperature'),
    'out': Linear('proj'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``weights``.

    Raises:
      ValueError: ``num_heads`` does not divide C, or ``variant`` is neither of the two.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    batch, height, width, channels = x.shape
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    if self.variant not in ('paper', 'official'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'official'")
    layer = {'inputs': channels, 'initialization': self.initialization, 'dtype': self.dtype}

    def heads(name: str) -> jax.Array:
      out = dense(channels, name=name, use_bias=self.use_bias, **layer)(x)
      return reshape(out, batch, height * width, self.num_heads, -1)

    q, k, v = _over_norm(heads('query')), _over_norm(heads('key')), heads('value')
    ones = nn.initializers.ones
    temperature = self.param('temperature', ones, (self.num_heads, 1, 1), jnp.float32)
    temperature = temperature[None].astype(q.dtype)
    scores = jnp.einsum('bnmd,bnme->bmde', q, k)
    scores = scores / temperature if self.variant == 'paper' else scores * temperature
    weights = masked_softmax(scores)
    out = jnp.einsum('bmde,bnme->bnmd', weights, v.astype(weights.dtype)).astype(v.dtype)
    out = dense(channels, name='out', **layer)(reshape(out, *x.shape))
    return Attended(out, {'weights': AttentionMap(weights, 'channel', (height, width))})


def _over_norm(t: jax.Array) -> jax.Array:
  """[B, N, M, D] over its L2 norm along N, in float32 at least; finite gradient at zero."""
  t = t.astype(accumulation_dtype(t))
  square = jnp.sum(t * t, axis=1, keepdims=True)
  return t * jax.lax.rsqrt(jnp.maximum(square, 1e-24))
