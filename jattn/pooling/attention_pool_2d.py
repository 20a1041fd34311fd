"""Attention pooling of CLIP: the mean token asks, all positions answer."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.layouts import Array, Layouts, Linear
from jattn.ops import (
  Init,
  attention_weights,
  global_average,
  reshape,
  rotary_angles,
  rotate,
  unmasked,
  weigh,
)
from jattn.settings import check_counts
from jattn.types import AttentionMap, Pooled


class AttentionPool2d(nn.Module):
  """``v = W_O sum_j a_j W_V t_j + b`` over the tokens ``t = [mean_i x_i; x_1 .. x_N] + positions``.

  ``a = softmax_j(q^T k_j / sqrt(D))`` by heads, with the query of token 0 alone: what the other
  tokens would ask is never computed. Radford et al. 2021 (CLIP), arXiv 2103.00020. ``learned``
  positions are a table for one grid, resized by antialiased cubic interpolation where the features
  have another; token 0 keeps its own. ``rotary`` positions turn the keys instead (Su et al. 2021,
  arXiv 2104.09864, as timm does it), but not token 0; rows and columns count as on ``grid``.

  The bias of the keys cannot move the vector where positions are learned: it adds one number to
  all scores of a head. Turned by each position's angle it can.

  Map: ``weights``, kind ``pool``, [B, M, H, W]: ``a_i + a_0 / N``. The mean token is the average of
  all positions, so its weight a_0 is spread evenly over them (over the unmasked ones). With rotary
  positions the vector is exactly ``W_O sum_i weights_i W_V x_i + b``; learned positions add
  theirs.

  Attributes:
    num_heads: M.
    out_features: width of the vector; None is C.
    positions: 'learned' or 'rotary'.
    grid: (H, W) of the learned table, or what rotary positions count.
    use_bias: whether queries, keys and values have a bias; the output always has.
    initialization: how the projections start, as Flax, PyTorch or He et al. start them; the table
      is normal with standard deviation ``1 / sqrt(C)``.
    dtype: what projections and products are computed in; None is the input's type.
  """

  num_heads: int = 8
  out_features: int | None = None
  positions: Literal['learned', 'rotary'] = 'learned'
  grid: tuple[int, int] = (7, 7)
  use_bias: bool = True
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'table': Array('pos_embed'),
    'query': Linear('qkv', 0, 3),
    'key': Linear('qkv', 1, 3),
    'value': Linear('qkv', 2, 3),
    'out': Linear('proj'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None = None) -> Pooled:
    """[B, H, W, C] -> [B, out_features]; ``mask`` bool [B, H, W], True where one takes part.

    An image with all positions masked gives what its mean token, zero, gives.

    Raises:
      ValueError: ``num_heads`` does not divide C, ``positions`` is neither of the two, or rotary
        heads are not a multiple of 4 wide.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    x = unmasked(x, mask)
    batch, height, width, channels = x.shape
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')
    if self.positions not in ('learned', 'rotary'):
      raise ValueError(f"{self.positions=} must be 'learned' or 'rotary'")
    kept = jnp.ones(x.shape[:3], bool) if mask is None else mask
    kept = reshape(kept, batch, height * width)
    everyone = jnp.pad(kept, ((0, 0), (1, 0)), constant_values=True)

    mean = global_average(x, mask=mask)[:, None]
    tokens = jnp.concatenate([mean, reshape(x, batch, height * width, channels)], axis=1)
    if self.positions == 'learned':
      tokens = (tokens + self._table(height, width, channels)[None]).astype(x.dtype)

    def project(name: str, tokens: jax.Array) -> jax.Array:
      out = self._dense(name, channels, channels, self.use_bias)(tokens)
      return reshape(out, *tokens.shape[:2], self.num_heads, channels // self.num_heads)

    query, key = project('query', tokens[:, :1]), project('key', tokens)
    if self.positions == 'rotary':
      angles = rotary_angles(
        (height, width), channels // self.num_heads, reference=tuple(self.grid)
      )
      key = rotate(key, jnp.pad(angles, ((1, 0), (0, 0))))
    a = attention_weights(query, key, mask=everyone[:, None, None])
    pooled = reshape(weigh(a, project('value', tokens)), batch, channels)
    out = channels if self.out_features is None else self.out_features
    vector = self._dense('out', out, channels, True)(pooled)

    count = jnp.maximum(jnp.sum(kept, axis=1, dtype=a.dtype), 1)[:, None, None]
    even = kept[:, None].astype(a.dtype) / count
    weights = reshape(a[:, :, 0, 1:] + a[:, :, 0, :1] * even, batch, -1, height, width)
    return Pooled(vector, {'weights': AttentionMap(weights, 'pool', (height, width))})

  def _dense(self, name: str, features: int, inputs: int, use_bias: bool) -> nn.Dense:
    return dense(
      features,
      inputs=inputs,
      name=name,
      initialization=self.initialization,
      use_bias=use_bias,
      dtype=self.dtype,
    )

  def _table(self, height: int, width: int, channels: int) -> jax.Array:
    """[1 + H*W, C]: token 0's position, then those of the grid, resized where it differs."""
    rows, columns = self.grid
    start = nn.initializers.normal(channels**-0.5)
    table = self.param('table', start, (1 + rows * columns, channels), jnp.float32)
    if (rows, columns) == (height, width):
      return table
    plane = table[1:].reshape(rows, columns, channels)
    resized = jax.image.resize(plane, (height, width, channels), 'cubic', antialias=True)
    return jnp.concatenate([table[:1], resized.reshape(height * width, channels)])
