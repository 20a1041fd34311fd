"""Gather-excite: a gate from the neighbourhood of each position, near or as far as the image."""

import math
from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jattn.layers import batch_norm, conv, dense
from jattn.layouts import Array, Conv, Conv1x1, Layouts, Norm
from jattn.ops import Init, accumulation_dtype, gate, kernel_init, round_channels
from jattn.settings import check_counts
from jattn.types import Attended, AttentionMap


class GatherExcite(nn.Module):
  """``x * sigmoid(up(f(gather(x))))``. Hu et al. 2018, arXiv 1810.12348.

  ``gather`` is the average over (2e - 1) x (2e - 1) positions around every e-th one, of those
  inside the image, e the extent; with ``extra_params`` it is log2(e) depthwise 3x3 convolutions of
  stride 2, each followed by batch norm and all but the last by relu. Extent 0 is the whole image:
  its average, or one depthwise kernel as large as the image, and batch norm. ``f`` is nothing or,
  with ``use_mlp``, ``W2 relu(W1 z + b1) + b2`` at every position. ``up`` repeats: position i of
  H takes the gathered ``floor(i h / H)``, so for a row of 4 and H = 7 it is 0, 0, 1, 1, 2, 2, 3.

  The paper's GE-theta-minus is the default, GE-theta has ``extra_params``, GE-theta-plus both;
  extent 0 with ``use_mlp`` alone is squeeze-and-excitation. The kernel as large as the image has
  the size of the images at init; on another size it is resized bilinearly, and scaled so that an
  even one keeps its sum.

  Map: ``gate``, kind ``gate``, [B, H, W, C] ([B, 1, 1, C] for extent 0), in (0, 1).

  Attributes:
    extent: e, in positions: 0, 2, 4, 8 or another power of two.
    extra_params: whether the gathering is learned.
    use_mlp: whether there is ``f``.
    reduction: C over the hidden width of ``f``, which is the nearest whole number, at least one.
    initialization: how the layers start, as Flax, PyTorch or He et al. start them.
    dtype: what the layers are computed in; None is the input's type.
  """

  extent: int = 0
  extra_params: bool = False
  use_mlp: bool = False
  reduction: float = 16
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    **{f'gather_{i}': Conv(f'gather.conv{i}') for i in range(1, 9)},
    **{f'norm_{i}': Norm(f'gather.norm{i}') for i in range(1, 9)},
    'gather': Array('gather.conv1.weight', axes=(2, 3, 1, 0)),
    'reduce': Conv1x1('mlp.fc1'),
    'expand': Conv1x1('mlp.fc2'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``gate``.

    Raises:
      ValueError: ``extent`` is neither 0 nor a power of two above one.
    """
    chex.assert_rank(x, 4)
    check_counts(self)
    if self.extent != 0 and (self.extent < 2 or self.extent & (self.extent - 1)):
      raise ValueError(f'{self.extent=} must be 0, 2, 4, 8 or another power of two')
    z = self._convolved(x, train=train) if self.extra_params else self._averaged(x)
    if self.use_mlp:
      channels = x.shape[-1]
      hidden = round_channels(channels / self.reduction, 1, limit=0)
      layer = {'initialization': self.initialization, 'dtype': self.dtype}
      z = nn.relu(dense(hidden, inputs=channels, name='reduce', **layer)(z))
      z = dense(channels, inputs=hidden, name='expand', **layer)(z)
    weights = nn.sigmoid(z.astype(accumulation_dtype(z)))
    if self.extent != 0:
      for axis in (1, 2):
        source = np.arange(x.shape[axis]) * z.shape[axis] // x.shape[axis]
        weights = jnp.take(weights, source, axis=axis)
    return Attended(gate(x, weights), {'gate': AttentionMap(weights, 'gate', x.shape[1:3])})

  def _averaged(self, x: jax.Array) -> jax.Array:
    """The mean of a window around every e-th position, [B, ceil(H / e), ceil(W / e), C]."""
    wide = x.astype(accumulation_dtype(x))
    if self.extent == 0:
      return jnp.mean(wide, axis=(1, 2), keepdims=True).astype(x.dtype)
    reach = self.extent - 1
    window, beyond = (2 * reach + 1,) * 2, ((reach, reach),) * 2
    strides = (self.extent,) * 2
    pooled = nn.avg_pool(wide, window, strides, padding=beyond, count_include_pad=False)
    return pooled.astype(x.dtype)

  def _convolved(self, x: jax.Array, *, train: bool) -> jax.Array:
    """The same sizes, by depthwise convolutions."""
    if self.extent == 0:
      kernel = self._whole_kernel(x).astype(accumulation_dtype(x))
      z = jnp.einsum('bhwc,hwc->bc', x.astype(kernel.dtype), kernel)[:, None, None]
      return batch_norm(train=train, name='norm_1', dtype=self.dtype)(z.astype(x.dtype))
    channels, z = x.shape[-1], x
    layer = {'initialization': self.initialization, 'dtype': self.dtype, 'use_bias': False}
    layer |= {'inputs': channels, 'groups': channels, 'strides': 2}
    count = int(math.log2(self.extent))
    for i in range(1, count + 1):
      z = conv(channels, (3, 3), name=f'gather_{i}', **layer)(z)
      z = batch_norm(train=train, name=f'norm_{i}', dtype=self.dtype)(z)
      z = nn.relu(z) if i < count else z
    return z

  def _whole_kernel(self, x: jax.Array) -> jax.Array:
    """[H, W, C], resized from the grid that it was made at."""
    grid, channels = x.shape[1:3], x.shape[-1]
    made = grid
    if self.has_variable('params', 'gather'):
      made = self.get_variable('params', 'gather').shape[:2]
    kernel = self.param(
      'gather', kernel_init(self.initialization), (*made, 1, channels), jnp.float32
    )
    kernel = kernel[:, :, 0]
    if made == grid:
      return kernel
    resized = jax.image.resize(kernel, (*grid, channels), 'linear')
    return resized * (made[0] * made[1] / (grid[0] * grid[1]))
