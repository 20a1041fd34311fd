"""Token learner: a few tokens, each a learned weighted sum over all positions."""

from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import conv, dense, layer_norm
from jattn.ops import Init, accumulation_dtype, masked_softmax, weighted_average
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class TokenLearner(nn.Module):
  """``t_s = sum_i a_si x_i``: S tokens of a feature map, whatever its grid.

  ``v1.1``: ``a_s = softmax_i(W2 gelu(W1 LN(x_i) + b1) + b2)``. ``paper``: ``a_s = (1/N) sigmoid(
  f(LN(x)))_s`` with ``f`` four 3x3 convolutions to S channels without biases, gelu between them.
  ``official``: the same without ``1/N``, as the authors' code of the paper's experiments sums.
  ``v1.1`` is what the authors have recommended since. LN has epsilon 1e-6, gelu is the tanh one.
  Ryoo et al. 2021, arXiv 2106.11297.

  The tokens stand in a row, as a feature map of one row and S columns: whatever takes a feature map
  takes them, but neighbours in the row are not neighbours in the image. ``b2`` cannot move the
  output: it adds one number to a whole map of scores, which softmax ignores.

  Maps: ``weights``, kind ``pool``, [B, S, H, W] (``v1.1``). Sigmoids sum to no fixed number, so for
  ``paper`` and ``official`` each token has its own map, ``token_0`` to ``token_{S-1}``, kind
  ``gate``, [B, H, W, 1], in (0, 1); the token is the average (the sum) of the gated input.

  Attributes:
    num_tokens: S.
    hidden: width of the hidden layer of ``v1.1``.
    variant: 'v1.1', 'paper' or 'official'.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  num_tokens: int = 8
  hidden: int = 64
  variant: Literal['v1.1', 'paper', 'official'] = 'v1.1'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, 1, S, C] and the maps.

    Raises:
      ValueError: ``variant`` is none of the three.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    if self.variant not in ('v1.1', 'paper', 'official'):
      raise ValueError(f"{self.variant=} must be 'v1.1', 'paper' or 'official'")
    grid = x.shape[1:3]
    normed = layer_norm(name='norm', dtype=self.dtype)(x)
    scores = self._score(normed)
    scores = scores.astype(accumulation_dtype(scores)).transpose(0, 3, 1, 2)
    if self.variant == 'v1.1':
      weights = masked_softmax(scores, axis=(2, 3))
      maps = {'weights': AttentionMap(weights, 'pool', grid)}
    else:
      gates = nn.sigmoid(scores)
      weights = gates / (grid[0] * grid[1]) if self.variant == 'paper' else gates
      maps = {
        f'token_{s}': AttentionMap(gates[:, s, :, :, None], 'gate', grid)
        for s in range(self.num_tokens)
      }
    return Attended(weighted_average(x, weights)[:, None], maps)

  def _score(self, x: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, S]."""
    layer = {'initialization': self.initialization, 'dtype': self.dtype}
    if self.variant == 'v1.1':
      x = dense(self.hidden, inputs=x.shape[-1], name='reduce', **layer)(x)
      x = nn.gelu(x, approximate=True)
      return dense(self.num_tokens, inputs=self.hidden, name='expand', **layer)(x)
    for index in range(4):
      x = nn.gelu(x, approximate=True) if index else x
      convolution = conv(
        self.num_tokens,
        (3, 3),
        inputs=x.shape[-1],
        use_bias=False,
        name=f'conv_{index}',
        **layer,
      )
      x = convolution(x)
    return x
