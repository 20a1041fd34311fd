"""Separable self-attention: one context vector for the image, handed to every position."""

from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense
from jattn.layouts import Conv1x1, Layouts
from jattn.ops import Init, gate, masked_softmax, weighted_average
from jattn.types import Attended, AttentionMap


class SeparableAttention(nn.Module):
  """``W_o (relu(v_i) * c)`` with ``c = sum_j alpha_j k_j`` and ``alpha = softmax_j(q_j)``.

  Mehta & Rastegari 2022 (MobileViTv2), arXiv 2206.02680. ``q`` is one number for each position,
  ``k`` and ``v`` are C, all linear in x; time is linear in N. All positions of the grid take part
  in one softmax (MobileViTv2 calls the mechanism once for each place within its 2x2 patches).

  The bias of q cannot move the output: it adds the same number to all scores of the softmax.

  Map: ``weights``, kind ``pool``, [B, 1, H, W]: which positions make up the context.

  Attributes:
    use_bias: whether the projections have a bias.
    initialization: how the projections start, as Flax, PyTorch or He et al. start them.
    dtype: what the projections are computed in; None is the input's type.
  """

  use_bias: bool = True
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {'qkv': Conv1x1('qkv_proj'), 'out': Conv1x1('out_proj')}

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``weights``."""
    del train
    chex.assert_rank(x, 4)
    channels = x.shape[-1]
    layer = {
      'inputs': channels,
      'initialization': self.initialization,
      'use_bias': self.use_bias,
      'dtype': self.dtype,
    }
    # One layer with columns q, k, v, as it is stored elsewhere: the widths 1, C, C are unequal.
    qkv = dense(1 + 2 * channels, name='qkv', **layer)(x)
    query, key, value = jnp.split(qkv, (1, 1 + channels), axis=-1)
    weights = masked_softmax(query.transpose(0, 3, 1, 2), axis=(2, 3))
    context = weighted_average(key, weights)[:, :, None]
    out = dense(channels, name='out', **layer)(gate(nn.relu(value), context))
    return Attended(out, {'weights': AttentionMap(weights, 'pool', x.shape[1:3])})
