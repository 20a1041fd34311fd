"""Differential attention: one softmax map minus another, which cancels what both look at."""

import math
from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.layouts import Array, Layouts, Linear, Norm
from jattn.ops import Init, attention_weights, reshape, weigh
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class DifferentialAttention(nn.Module):
  """``(1 - l0) RMS(A1 V - lambda A2 V)`` for each head, side by side, then a projection.

  Ye et al. 2024, arXiv 2410.05258. ``A1 = softmax(Q1 K1^T / sqrt(D))`` and A2 likewise with Q2, K2;
  all are linear in x, D = C / 2M wide (V is 2D). ``lambda = exp(a1 . b1) - exp(a2 . b2) + l0``
  with learned vectors [D] that all heads share, and ``l0 = 0.8 - 0.6 exp(-0.3 depth)``. RMS divides
  a head's 2D outputs by their root mean square (epsilon 1e-5 in the mean) and scales them by 2D
  learned numbers that all heads share.

  The difference of the maps is signed and its rows sum to ``1 - lambda``, so it is no map. The
  biases of the keys cannot move the output: each softmax ignores them.

  Maps, both kind ``position``, [B, M, Q, K]: ``weights`` (A1) and ``subtracted`` (A2, which lambda
  multiplies).

  Attributes:
    num_heads: M; twice it divides C. Half of what plain attention of head width D would have.
    depth: how many such layers come before this one; sets l0.
    use_bias: whether the projections have a bias (the paper's have none).
    initialization: how the projections start, as Flax, PyTorch or He et al. start them; the vectors
      of lambda are normal with standard deviation 0.1 in any case.
    dtype: what projections and products are computed in; None is the input's type.
  """

  num_heads: int = 1
  depth: int = 0
  use_bias: bool = False
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'query': Linear('qkv', part=0, parts=3),
    'key': Linear('qkv', part=1, parts=3),
    'value': Linear('qkv', part=2, parts=3),
    **{name: Array(name) for name in ('lambda_q1', 'lambda_k1', 'lambda_q2', 'lambda_k2')},
    'norm': Norm('sub_norm'),
    'out': Linear('proj'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the maps ``weights`` and ``subtracted``.

    Raises:
      ValueError: twice ``num_heads`` does not divide C.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    batch, height, width, channels = x.shape
    if channels % (2 * self.num_heads):
      raise ValueError(f'twice {self.num_heads=} must divide C={channels}')
    layer = {
      'inputs': channels,
      'initialization': self.initialization,
      'use_bias': self.use_bias,
      'dtype': self.dtype,
    }

    def project(name: str, *heads: int) -> jax.Array:
      out = dense(channels, name=name, **layer)(x)
      return reshape(out, batch, height * width, self.num_heads, *heads)

    # The two queries of a head lie side by side.
    query, key, value = project('query', 2, -1), project('key', 2, -1), project('value', -1)
    maps = [attention_weights(query[..., i, :], key[..., i, :]) for i in (0, 1)]
    start = 0.8 - 0.6 * math.exp(-0.3 * self.depth)
    factor = self._exponential(1, key.shape[-1]) - self._exponential(2, key.shape[-1]) + start
    kept, subtracted = (weigh(a, value.astype(a.dtype)) for a in maps)
    out = kept - factor.astype(kept.dtype) * subtracted
    out = nn.RMSNorm(epsilon=1e-5, dtype=out.dtype, name='norm')(out) * (1 - start)
    out = dense(channels, name='out', **layer)(reshape(out.astype(value.dtype), *x.shape))
    grid = (height, width)
    names = ('weights', 'subtracted')
    return Attended(
      out, {n: AttentionMap(a, 'position', grid) for n, a in zip(names, maps, strict=True)}
    )

  def _exponential(self, index: int, width: int) -> jax.Array:
    start = nn.initializers.normal(0.1)
    vectors = (
      self.param(f'lambda_{letter}{index}', start, (width,), jnp.float32) for letter in 'qk'
    )
    return jnp.exp(jnp.vdot(*vectors))
