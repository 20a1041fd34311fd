"""Coordinate attention: a gate on each row and a gate on each column, channel by channel."""

from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import batch_norm, dense
from jattn.layouts import Conv1x1, Layouts, Norm
from jattn.ops import Init, accumulation_dtype, gate, round_channels
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class CoordinateAttention(nn.Module):
  """``x_ij * sigmoid(W_r f_i + b_r) * sigmoid(W_c f_j + b_c)``, f from the means of rows, columns.

  The H means of rows and the W means of columns lie side by side and go through one layer,
  ``f = h_swish(BN(W z + b))``, whose batch norm sees all H + W of them;
  ``h_swish(t) = t min(max(t + 3, 0), 6) / 6``. Hou et al. 2021, arXiv 2103.02907.

  ``paper`` has the sizes of the authors' code: hidden width max(8, C / 32, floor), all layers with
  bias. ``timm``: hidden width 2/3 of C / 16, the nearest multiple of 8 and at least 8, no biases.
  In training the bias b has no gradient, for the batch norm takes the mean away.

  Maps, both kind ``gate`` and in (0, 1): ``rows`` [B, H, 1, C] and ``columns`` [B, 1, W, C].

  Attributes:
    reduction: C over the hidden width before it is bounded; None is 32 for 'paper', 24 for 'timm'.
    variant: 'paper' or 'timm'.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  reduction: float | None = None
  variant: Literal['paper', 'timm'] = 'paper'
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'reduce': Conv1x1('conv1'),
    'norm': Norm('bn1'),
    'rows': Conv1x1('conv_h'),
    'columns': Conv1x1('conv_w'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the maps ``rows`` and ``columns``.

    Raises:
      ValueError: ``variant`` is neither of the two.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    if self.variant not in ('paper', 'timm'):
      raise ValueError(f"{self.variant=} must be 'paper' or 'timm'")
    _, height, width, channels = x.shape
    hidden = self._hidden(channels)
    layer = {'initialization': self.initialization, 'dtype': self.dtype}
    layer['use_bias'] = self.variant == 'paper'
    wide = x.astype(accumulation_dtype(x))
    means = jnp.concatenate([jnp.mean(wide, axis=2), jnp.mean(wide, axis=1)], axis=1)
    f = dense(hidden, inputs=channels, name='reduce', **layer)(means.astype(x.dtype))
    f = nn.hard_swish(batch_norm(train=train, name='norm', dtype=self.dtype)(f))
    rows = dense(channels, inputs=hidden, name='rows', **layer)(f[:, :height, None])
    columns = dense(channels, inputs=hidden, name='columns', **layer)(f[:, None, height:])
    rows = nn.sigmoid(rows.astype(accumulation_dtype(rows)))
    columns = nn.sigmoid(columns.astype(accumulation_dtype(columns)))
    maps = {
      'rows': AttentionMap(rows, 'gate', (height, width)),
      'columns': AttentionMap(columns, 'gate', (height, width)),
    }
    return Attended(gate(x, rows, columns), maps)

  def _hidden(self, channels: int) -> int:
    if self.variant == 'paper':
      return max(8, int(channels / (self.reduction or 32)))
    return round_channels(channels / (self.reduction or 24), 8, limit=0)
