"""Global context: one weighted average of the features, transformed and given to every position."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import dense, layer_norm
from jattn.layouts import Conv1x1, Layouts, Norm
from jattn.ops import (
  Init,
  accumulation_dtype,
  gate,
  masked_softmax,
  round_channels,
  weighted_average,
)
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class GlobalContext(nn.Module):
  """``x_i + t(c)``, or ``x_i * sigmoid(t(c))``, with ``c = sum_j softmax_j(w . x_j + b) x_j``.

  ``t(c) = W2 relu(LN(W1 c + b1)) + b2``, LN a layer norm over the hidden channels. The sum is the
  paper's block, which is residual by itself. Cao et al. 2019 (GCNet), arXiv 1904.11492.

  ``paper``: hidden width C / reduction, floor, at least 4; LN epsilon 1e-5. ``timm``: nearest, at
  least 1; epsilon 1e-6. A norm over one channel is blind to its input and over two nearly so, hence
  the 4, which only C < 4 * reduction notices. The bias b has no gradient: softmax ignores it.

  ``add`` starts as the identity whatever ``initialization`` is, for W2 starts at zero (but with
  'torch', b2 does not). The scores' w starts with variance 2 / C under 'paper'.

  Maps: ``weights``, kind ``pool``, [B, 1, H, W]; for ``multiply`` also ``gate``, kind ``gate``,
  [B, 1, 1, C], in (0, 1).

  Attributes:
    fuse: 'add' or 'multiply'.
    reduction: C over the hidden width.
    variant: 'paper' or 'timm'.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  fuse: Literal['add', 'multiply'] = 'add'
  reduction: float = 16
  variant: Literal['paper', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'score': Conv1x1('conv_attn'),
    'add_reduce': Conv1x1('mlp_add.fc1'),
    'add_norm': Norm('mlp_add.norm'),
    'add_expand': Conv1x1('mlp_add.fc2'),
    'multiply_reduce': Conv1x1('mlp_scale.fc1'),
    'multiply_norm': Norm('mlp_scale.norm'),
    'multiply_expand': Conv1x1('mlp_scale.fc2'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the maps.

    Raises:
      ValueError: ``fuse`` or ``variant`` is none of its names.
    """
    del train
    chex.assert_rank(x, 4)
    check_counts(self)
    if self.fuse not in ('add', 'multiply'):
      raise ValueError(f"{self.fuse=} must be 'add' or 'multiply'")
    if self.variant not in ('paper', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'timm'")
    grid = x.shape[1:3]
    paper = self.initialization == 'paper'
    start = nn.initializers.variance_scaling(2, 'fan_in', 'normal') if paper else None
    score = self._dense('score', 1, x, start)
    weights = masked_softmax(jnp.moveaxis(score, -1, 1), axis=(2, 3))
    change = self._transform(weighted_average(x, weights)[:, None])
    change = change.astype(accumulation_dtype(change))
    maps = {'weights': AttentionMap(weights, 'pool', grid)}
    if self.fuse == 'add':
      return Attended((x.astype(change.dtype) + change).astype(x.dtype), maps)
    gates = nn.sigmoid(change)
    return Attended(gate(x, gates), maps | {'gate': AttentionMap(gates, 'gate', grid)})

  def _transform(self, context: jax.Array) -> jax.Array:
    """[B, 1, 1, C] -> [B, 1, 1, C]: the bottleneck t."""
    channels, timm = context.shape[-1], self.variant == 'timm'
    hidden = channels / self.reduction
    hidden = round_channels(hidden, 1, limit=0) if timm else max(4, int(hidden))
    h = self._dense(f'{self.fuse}_reduce', hidden, context)
    epsilon = 1e-6 if timm else 1e-5
    h = layer_norm(name=f'{self.fuse}_norm', epsilon=epsilon, dtype=self.dtype)(h)
    start = nn.initializers.zeros if self.fuse == 'add' else None
    return self._dense(f'{self.fuse}_expand', channels, nn.relu(h), start)

  def _dense(
    self,
    name: str,
    features: int,
    x: jax.Array,
    start: nn.initializers.Initializer | None = None,
  ) -> jax.Array:
    return dense(
      features,
      inputs=x.shape[-1],
      name=name,
      initialization=self.initialization,
      start=start,
      dtype=self.dtype,
    )(x)
