"""Residual networks for ImageNet: plain, deep and tiered stems, basic and bottleneck blocks."""

from collections.abc import Sequence
from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.backbones.resnet_blocks import (
  Downsample,
  Kind,
  Place,
  ResidualBlock,
  Shortcut,
  block_names,
)
from jattn.backbones.slots import Inserts, MakeAttention, Maps, check_inserts, places, run_stage
from jattn.layers import Activation, Norm, activation, conv, drop_path_rates, norm
from jattn.layouts import Conv, Layouts, Linear, prefixed
from jattn.layouts import Norm as NormLayout
from jattn.ops import Init
from jattn.types import Attended

Stem = Literal['plain', 'deep', 'tiered']


class ResNet(nn.Module):
  """Residual network for large images: a stem that quarters H and W, then stages of blocks.

  He et al. 2015, arXiv 1512.03385. The stem of width S is a 7x7 convolution to S channels
  (``plain``), or three of 3x3 to S/2, S/2, S (``deep``: ResNet-C and -D, He et al. 2018, arXiv
  1812.01187) or 3/8 S, S/2, S (``tiered``: timm's -T); the first of them strides by two, norm and
  activation follow each, and a maximum over 3x3, stride two, ends the stem. Every stage but the
  first halves H and W, rounding up.

  As timm's ``ResNet``, but for the stochastic depth of ResNeSt's blocks: timm 1.0.31 drops their
  shortcuts where those have parameters and nothing elsewhere; here the branch is dropped.

  Maps: those of each block, under ``stage_S/block_I/attention/...``.

  Attributes:
    depths: blocks of each stage.
    widths: ``features`` of the blocks of each stage; a bottleneck puts out four times as many.
    block: 'basic' or 'bottleneck', see ``ResidualBlock``.
    stem: 'plain', 'deep' or 'tiered'.
    stem_width: S, channels after the stem.
    cardinality, base_width, shortcut, downsample, attention, place, norm, activation, zero_last:
      of every block.
    initialization: how the convolutions start; 'paper' is normal with variance 2 / fan_out, as
      timm starts them.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the last block's branch, rising evenly from the first's 0.
    inserts: (place, what makes the mechanism after it), see ``jattn.backbones.slots``.
    remat: whether the activations of a block are made again in the backward pass.
  """

  depths: Sequence[int] = (2, 2, 2, 2)
  widths: Sequence[int] = (64, 128, 256, 512)
  block: Kind = 'basic'
  stem: Stem = 'plain'
  stem_width: int = 64
  cardinality: int = 1
  base_width: int = 64
  shortcut: Shortcut = 'projection'
  downsample: Downsample = 'convolution'
  attention: MakeAttention | None = None
  place: Place = 'end'
  norm: Norm = 'batch'
  activation: Activation = 'relu'
  zero_last: bool = True
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0
  inserts: Inserts = ()
  remat: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, 3] -> features [B, ceil(H / 32), ceil(W / 32), C] of 4 stages, and maps.

    Raises:
      ValueError: ``depths`` and ``widths`` differ in length, or a setting is none of its choices.
    """
    chex.assert_rank(images, 4)
    if len(self.depths) != len(self.widths):
      raise ValueError(f'{self.depths=} and {self.widths=} must be of the same length')
    depths = tuple(self.depths)
    check_inserts(self.inserts, places(depths))
    rates = drop_path_rates(self.drop_path, depths)
    x = self._stem(images, train)
    maps: Maps = {}
    stages = []
    for stage, depth in enumerate(depths):
      blocks = (self._block(stage, index, rates[stage][index]) for index in range(depth))
      x, found = run_stage(self, stage, blocks, x, train=train)
      maps |= found
      stages.append(x)
    return Attended(x, maps, tuple(stages))

  def _block(self, stage: int, index: int, rate: float) -> ResidualBlock:
    return ResidualBlock(
      self.widths[stage],
      kind=self.block,
      strides=2 if stage and not index else 1,
      cardinality=self.cardinality,
      base_width=self.base_width,
      shortcut=self.shortcut,
      downsample=self.downsample,
      attention=self.attention,
      place=self.place,
      norm=self.norm,
      activation=self.activation,
      zero_last=self.zero_last,
      initialization=self.initialization,
      dtype=self.dtype,
      drop_path=rate,
      name=f'stage_{stage}_block_{index}',
    )

  def _stem(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, 3] -> [B, ceil(H / 4), ceil(W / 4), S]."""
    act = activation(self.activation)
    for index, width in enumerate(self._stem_widths()):
      side = 7 if self.stem == 'plain' else 3
      x = conv(
        width,
        (side, side),
        inputs=x.shape[-1],
        name=f'stem_conv_{index}',
        strides=1 if index else 2,
        use_bias=False,
        initialization=self.initialization,
        dtype=self.dtype,
      )(x)
      x = act(norm(self.norm, train=train, name=f'stem_norm_{index}', dtype=self.dtype)(x))
    return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)])

  @nn.nowrap
  def _stem_widths(self) -> tuple[int, ...]:
    width = self.stem_width
    if self.stem == 'plain':
      return (width,)
    if self.stem == 'deep':
      return (width // 2, width // 2, width)
    if self.stem == 'tiered':
      return (3 * (width // 8), width // 2, width)
    raise ValueError(f"{self.stem=} must be 'plain', 'deep' or 'tiered'")

  @property
  def timm_names(self) -> Layouts:
    """How timm's ``ResNet`` calls every layer, see ``jattn.layouts``."""
    last = len(self._stem_widths()) - 1
    names: dict = {
      'stem_conv_0': Conv('conv1.0' if last else 'conv1'),
      f'stem_norm_{last}': NormLayout('bn1'),
    }
    for index in range(last):
      names[f'stem_norm_{index}'] = NormLayout(f'conv1.{3 * index + 1}')
      names[f'stem_conv_{index + 1}'] = Conv(f'conv1.{3 * index + 3}')
    block = block_names(
      kind=self.block,
      place=self.place,
      shortcut=self.shortcut,
      attention=None if self.attention is None else self.attention(),
    )
    for stage, depth in enumerate(self.depths):
      for index in range(depth):
        path, name = f'stage_{stage}_block_{index}/', f'layer{stage + 1}.{index}.'
        names |= prefixed(block, path=path, name=name)
    return names

  @property
  def timm_head(self) -> Layouts:
    """How timm calls the layer to the classes."""
    return {'logits': Linear('fc')}
