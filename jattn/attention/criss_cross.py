"""Attention of every position to its row and its column together."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jattn.layers import dense
from jattn.ops import Init, accumulation_dtype, masked_softmax, reshape
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class CrissCrossAttention(nn.Module):
  """``softmax(q k^T) v`` over the H + W - 1 positions of a query's row and column.

  One softmax over both, in which the query's own position stands once. Queries and keys have
  C / reduction channels, at least one; there is no factor ``1 / sqrt(D)``. Huang et al. 2018
  (CCNet), arXiv 1811.11721. The authors scale the result by a learned number that starts at zero
  and add the input: that is ``Residual`` around this. They apply the same layer twice, with shared
  parameters, so that every position sees every other: that is calling one instance twice.

  The bias of the key projection cannot move the output: softmax ignores it.

  Map: ``weights``, kind ``position``, [B, 1, N, H + W - 1] with ``keys``: the column from the top,
  then the row from the left without the query's own position.

  Attributes:
    reduction: C over the channels of queries and keys.
    initialization: how the projections start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  reduction: int = 8
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``weights``."""
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    batch, height, width, channels = x.shape
    hidden = max(1, channels // self.reduction)

    def project(name: str, features: int) -> jax.Array:
      layer = dense(
        features,
        inputs=channels,
        name=name,
        initialization=self.initialization,
        dtype=self.dtype,
      )
      return layer(x)

    q, k, v = project('query', hidden), project('key', hidden), project('value', channels)
    exact = {'preferred_element_type': accumulation_dtype(q, k)}
    column = jnp.einsum('bhwd,bgwd->bhwg', q, k, **exact)
    row = jnp.einsum('bhwd,bhvd->bhwv', q, k, **exact)
    # A query's own position is in its column already.
    own = np.eye(width, dtype=bool)[None, None]
    row = jnp.where(jnp.broadcast_to(own, row.shape), -jnp.inf, row)
    weights = masked_softmax(jnp.concatenate([column, row], axis=-1))
    down, along = jnp.split(weights.astype(v.dtype), [height], axis=-1)
    out = jnp.einsum('bhwg,bgwc->bhwc', down, v, **exact)
    out = out + jnp.einsum('bhwv,bhvc->bhwc', along, v, **exact)

    rows, columns = np.indices((height, width))
    others = np.array([[other for other in range(width) if other != w] for w in range(width)], int)
    others = np.broadcast_to(others.reshape(1, width, width - 1), (height, width, width - 1))
    shown = [weights[..., :height], jnp.take_along_axis(weights, height + others[None], axis=-1)]
    shown = reshape(jnp.concatenate(shown, axis=-1), batch, 1, height * width, -1)
    keys = [np.arange(height) * width + columns[..., None], rows[..., None] * width + others]
    keys = jnp.asarray(np.concatenate(keys, axis=-1).reshape(height * width, -1), jnp.int32)
    maps = {'weights': AttentionMap(shown, 'position', (height, width), keys)}
    return Attended(out.astype(v.dtype), maps)
