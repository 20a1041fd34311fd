"""Non-local block: every position adds a weighted mean of all positions to itself."""

from typing import ClassVar, Literal, get_args

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import batch_norm, dense
from jattn.layouts import Conv1x1, Layouts, Norm
from jattn.ops import (
  Init,
  accumulation_dtype,
  attention_weights,
  kernel_init,
  reshape,
  round_channels,
  weigh,
)
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap

Kind = Literal['embedded_gaussian', 'gaussian', 'dot_product', 'concatenation']


class NonLocal(nn.Module):
  """``x_i + BN(W y_i)`` with ``y_i = (1/n_i) sum_j f(x_i, x_j) g(x_j)``.

  Wang et al. 2018, arXiv 1711.07971. ``q``, ``k`` and ``g`` are linear in x (theta, phi and g
  there), and n_i is the sum of f over j in the first two kinds, N in the others.

  =================  ===========================  ==============================
  kind               ``f(x_i, x_j)``              map
  =================  ===========================  ==============================
  embedded_gaussian  ``exp(scale * q_i . k_j)``   softmax over j
  gaussian           ``exp(x_i . x_j)``           softmax over j
  dot_product        ``q_i . k_j``                none: f may be negative
  concatenation      ``relu(w . [q_i, k_j])``     none: rows do not sum to one
  =================  ===========================  ==============================

  The hidden width D is C / reduction. ``scale`` is one in the ``paper``, 1/sqrt(D) in the
  ``official`` code and 1/sqrt(C), though the products are D long, in ``timm``, which also rounds D
  to a multiple of 8; they differ from the paper in the embedded Gaussian only. The residual is the
  block's own. The batch norm's scale starts at zero, so the
  block starts as the exact identity, in training too, and nothing before the norm has a gradient
  in the first step. ``dot_product`` is computed as ``q (k^T g)``, without the N x N products.

  Map of the first two kinds: ``weights``, kind ``position``, [B, 1, Q, K].

  Attributes:
    kind: f, as above.
    reduction: C / D; None is 8 for ``timm`` and 2 for the others.
    variant: 'paper', 'official' or 'timm'.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  kind: Kind = 'embedded_gaussian'
  reduction: int | None = None
  variant: Literal['paper', 'official', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'query': Conv1x1('t'),
    'key': Conv1x1('p'),
    'value': Conv1x1('g'),
    'out': Conv1x1('z'),
    'norm': Norm('norm'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and, of the Gaussian kinds, the map ``weights``.

    Raises:
      ValueError: ``kind`` or ``variant`` is none of the above, or the variant has no such kind.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    if self.kind not in get_args(Kind):
      raise ValueError(f'{self.kind=} must be one of {get_args(Kind)}')
    if self.variant not in ('paper', 'official', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper', 'official' or 'timm'")
    if self.variant != 'paper' and self.kind != 'embedded_gaussian':
      raise ValueError(f"{self.variant=} has kind='embedded_gaussian' only, not {self.kind=}")
    batch, height, width, channels = x.shape
    tokens = reshape(x, batch, height * width, 1, channels)
    hidden = self._hidden(channels)
    layer = {'initialization': self.initialization, 'dtype': self.dtype}
    value = dense(hidden, inputs=channels, name='value', **layer)(tokens)
    query = key = tokens
    if self.kind != 'gaussian':
      query = dense(hidden, inputs=channels, name='query', **layer)(tokens)
      key = dense(hidden, inputs=channels, name='key', **layer)(tokens)
    maps = {}
    if self.kind in ('embedded_gaussian', 'gaussian'):
      scale = {'paper': 1.0, 'official': hidden**-0.5, 'timm': channels**-0.5}[self.variant]
      weights = attention_weights(query, key, scale=scale)
      maps = {'weights': AttentionMap(weights, 'position', (height, width))}
      out = weigh(weights, value)
    else:
      out = self._mean(query, key, value).astype(value.dtype)
    out = dense(channels, inputs=hidden, name='out', **layer)(reshape(out, *x.shape[:3], hidden))
    zeros = nn.initializers.zeros
    out = batch_norm(train=train, name='norm', scale_init=zeros, dtype=self.dtype)(out)
    return Attended((x + out).astype(x.dtype), maps)

  def _hidden(self, channels: int) -> int:
    if self.variant == 'timm':
      return round_channels(channels / (self.reduction or 8), 8)
    return max(1, channels // (self.reduction or 2))

  def _mean(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """``(1/N) sum_j f_ij g_j`` of the kinds that are divided by N."""
    dtype = accumulation_dtype(query)
    query, key, value = (a.astype(dtype) for a in (query, key, value))
    value = value / query.shape[1]
    if self.kind == 'dot_product':
      return jnp.einsum('bqmd,bmde->bqme', query, jnp.einsum('bkmd,bkme->bmde', key, value))
    hidden = query.shape[-1]
    start = kernel_init(self.initialization)
    w = self.param('score', start, (2 * hidden, 1), jnp.float32).astype(dtype)
    scores = (query @ w[:hidden])[..., 0] + (key @ w[hidden:])[..., 0].transpose(0, 2, 1)
    return jnp.einsum('bqk,bkme->bqme', nn.relu(scores), value)
