"""Residual networks for 32x32 images, with a slot for attention in every block."""

from collections.abc import Sequence
from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.backbones.slots import (
  Inserts,
  MakeAttention,
  Maps,
  attend_in_block,
  check_inserts,
  insert,
  places,
  run,
  under,
)
from jattn.layers import DropPath, Norm, conv, drop_path_rates, norm
from jattn.ops import Init
from jattn.types import Attended

Shortcut = Literal['pad', 'projection']


class BasicBlock(nn.Module):
  """``relu(shortcut(x) + attention(norm(conv(relu(norm(conv(x)))))))``, both convolutions 3x3.

  He et al. 2015, arXiv 1512.03385; the attention stands after the last norm and before the
  addition, where squeeze-and-excitation (arXiv 1709.01507) and its successors put it.

  Attributes:
    features: width of the output.
    strides: of the first convolution.
    attention: makes the mechanism, or None.
    norm: 'batch' or 'group'.
    shortcut: where the shape changes, 'pad' takes every other position and adds channels of zeros
      (option A of the paper: no parameters), 'projection' is a 1x1 convolution and a norm (B).
    zero_last: whether the last norm's scale starts at zero, so that the block starts as its
      shortcut (Goyal et al. 2017, arXiv 1706.02677).
    initialization: how the convolutions start; 'paper' is He et al. 2015, arXiv 1502.01852.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the branch of an image in training.
  """

  features: int
  strides: int = 1
  attention: MakeAttention | None = None
  norm: Norm = 'batch'
  shortcut: Shortcut = 'pad'
  zero_last: bool = False
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, ceil(H / strides), ceil(W / strides), features].

    Raises:
      ValueError: the attention changes the shape, or ``shortcut`` is neither of the two.
    """
    y = self._conv('conv_0', (3, 3), self.strides, x)
    y = nn.relu(self._norm('norm_0', train)(y))
    y = self._conv('conv_1', (3, 3), 1, y)
    y = self._norm('norm_1', train, scale=0.0 if self.zero_last else 1.0)(y)
    y, maps = attend_in_block(self, self.attention, y, train=train)
    y = DropPath(self.drop_path)(y, train=train)
    return Attended(nn.relu(self._shortcut(x, train) + y), maps)

  def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
    if self.strides == 1 and x.shape[-1] == self.features:
      return x
    if self.shortcut == 'projection':
      x = self._conv('shortcut', (1, 1), self.strides, x)
      return self._norm('norm_shortcut', train)(x)
    if self.shortcut != 'pad':
      raise ValueError(f"{self.shortcut=} must be 'pad' or 'projection'")
    missing = self.features - x.shape[-1]
    x = x[:, :: self.strides, :: self.strides]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))

  def _conv(self, name: str, kernel: tuple[int, int], strides: int, x: jax.Array) -> jax.Array:
    return conv(
      self.features,
      kernel,
      inputs=x.shape[-1],
      name=name,
      strides=strides,
      use_bias=False,
      initialization=self.initialization,
      dtype=self.dtype,
    )(x)

  def _norm(self, name: str, train: bool, scale: float = 1.0) -> nn.Module:
    start = nn.initializers.constant(scale)
    return norm(self.norm, train=train, name=name, scale_init=start, dtype=self.dtype)


class ResNetCifar(nn.Module):
  """Residual network of depth 6n + 2 for small images: a 3x3 convolution and 3 stages of n blocks.

  He et al. 2015, section 4.2, arXiv 1512.03385. Depth 20, 32 and 56 are n = 3, 5 and 9; with the
  linear layer to 10 classes they have 269,722, 464,154 and 853,018 parameters.

  Maps: those of each block, under ``stage_S/block_I/attention/...``.

  Attributes:
    depth: 6n + 2, counting the convolutions of the blocks, the first one and the classifier.
    widths: channels of each stage; every stage but the first halves H and W, rounding up.
    attention: makes the mechanism of each block, or None.
    norm: 'batch' or 'group'.
    shortcut: 'pad' or 'projection', see ``BasicBlock``.
    zero_last: whether the last norm of each block starts at zero.
    initialization: how the convolutions start.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the last block's branch, rising evenly from the first's 0.
    inserts: (place, what makes the mechanism after it), see ``jattn.backbones.slots``.
    remat: whether the activations of a block are made again in the backward pass.
  """

  depth: int = 20
  widths: Sequence[int] = (16, 32, 64)
  attention: MakeAttention | None = None
  norm: Norm = 'batch'
  shortcut: Shortcut = 'pad'
  zero_last: bool = False
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0
  inserts: Inserts = ()
  remat: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, 3] -> features [B, ceil(H / 4), ceil(W / 4), widths[-1]] and the blocks' maps.

    Raises:
      ValueError: the depth is not 6n + 2.
    """
    chex.assert_rank(images, 4)
    blocks, rest = divmod(self.depth - 2, 2 * len(self.widths))
    if rest or blocks < 1:
      raise ValueError(f'{self.depth=} must be {2 * len(self.widths)}n + 2')
    x = conv(
      self.widths[0],
      (3, 3),
      inputs=images.shape[-1],
      name='conv',
      use_bias=False,
      initialization=self.initialization,
      dtype=self.dtype,
    )(images)
    x = nn.relu(norm(self.norm, train=train, name='norm', dtype=self.dtype)(x))
    depths = (blocks,) * len(self.widths)
    check_inserts(self.inserts, places(depths))
    rates = drop_path_rates(self.drop_path, depths)
    maps: Maps = {}
    stages = []
    for stage, features in enumerate(self.widths):
      for index in range(blocks):
        path = f'stage_{stage}/block_{index}'
        block = BasicBlock(
          features,
          strides=2 if stage and not index else 1,
          attention=self.attention,
          norm=self.norm,
          shortcut=self.shortcut,
          zero_last=self.zero_last,
          initialization=self.initialization,
          dtype=self.dtype,
          drop_path=rates[stage][index],
          name=path.replace('/', '_'),
        )
        attended = run(block, x, train=train, remat=self.remat)
        x, inserted = insert(self, self.inserts, path, attended.features, train=train)
        maps |= under(path, attended.maps) | inserted
      x, inserted = insert(self, self.inserts, f'stage_{stage}', x, train=train)
      maps |= inserted
      stages.append(x)
    return Attended(x, maps, tuple(stages))
