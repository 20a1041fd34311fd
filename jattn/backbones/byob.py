"""Residual networks of bottlenecks with attention in the middle, as timm's byobnet builds them."""

from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.backbones.byob_blocks import HybridBottleneck
from jattn.backbones.slots import Inserts, MakeAttention, Maps, check_inserts, places, run_stage
from jattn.layers import Activation, Norm, activation, conv, drop_path_rates, norm
from jattn.layouts import Conv, Layouts, Linear, prefixed
from jattn.layouts import Norm as NormLayout
from jattn.ops import Init, round_channels
from jattn.types import Attended


class ByobNet(nn.Module):
  """A tiered stem that quarters H and W, then stages of bottlenecks, each of the kind it is given.

  ``blocks=('cc', 'cc', 'ca', 'aa')``: four stages of two blocks, the last three with self-attention
  in place of the 3x3 convolution (BoTNet, Srinivas et al. 2021, arXiv 2101.11605); for the kinds of
  block see ``HybridBottleneck``. The stem is a 3x3 convolution to each of the widths ``stem``, norm
  and activation after each; the first strides by two, and a maximum over 3x3, stride two, ends the
  stem, or, without it, the last convolution strides too. Every stage but the first halves H and W,
  rounding up. A last 1x1 convolution with norm and activation may follow.

  Maps: those of each block, under ``stage_S/block_I/attention/...``.

  Attributes:
    blocks: the kinds of the blocks of each stage, a letter for each: 'c' a convolution, 'g' a
      convolution and attention (a gate) after it, 'a' attention.
    widths: channels after each stage.
    ratio: width of a block's middle over that of its output; rounded to a multiple of 8.
    group_size: channels of each group of the 3x3 convolutions; None is one group.
    stem: width of each convolution of the stem.
    stem_pool: whether a maximum ends the stem.
    last: width of the last 1x1 convolution, or None.
    attention: makes the mechanism of each block 'g' and 'a', or None: they are 'c' then.
    norm: 'batch', 'group' or 'layer'.
    activation: after the norms.
    zero_last: whether the last norm of each block starts at zero.
    initialization: how the convolutions start; 'paper' is normal with variance 2 / fan_out, as timm
      starts them.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the last block's branch, rising evenly from the first's 0.
    inserts: (place, what makes the mechanism after it), see ``jattn.backbones.slots``.
    remat: whether the activations of a block are made again in the backward pass.
  """

  blocks: Sequence[str] = ('cc', 'cc', 'ca', 'aa')
  widths: Sequence[int] = (256, 512, 1024, 2048)
  ratio: float = 0.25
  group_size: int | None = None
  stem: Sequence[int] = (24, 32, 64)
  stem_pool: bool = True
  last: int | None = None
  attention: MakeAttention | None = None
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
      ValueError: ``blocks`` and ``widths`` differ in length, or a setting is none of its choices.
    """
    chex.assert_rank(images, 4)
    if len(self.blocks) != len(self.widths):
      raise ValueError(f'{self.blocks=} and {self.widths=} must be of the same length')
    depths = tuple(len(kinds) for kinds in self.blocks)
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
    if self.last is not None:
      x = self._unit('last', x, self.last, 1, 1, train)
    return Attended(x, maps, tuple(stages))

  @nn.nowrap
  def _block(self, stage: int, index: int, rate: float = 0.0) -> HybridBottleneck:
    width = self.widths[stage]
    return HybridBottleneck(
      width,
      round_channels(width * self.ratio, 8),
      kind=self.blocks[stage][index],
      strides=2 if stage and not index else 1,
      group_size=self.group_size,
      attention=self.attention,
      norm=self.norm,
      activation=self.activation,
      zero_last=self.zero_last,
      initialization=self.initialization,
      dtype=self.dtype,
      drop_path=rate,
      name=f'stage_{stage}_block_{index}',
    )

  def _stem(self, x: jax.Array, train: bool) -> jax.Array:
    """[B, H, W, 3] -> [B, ceil(H / 4), ceil(W / 4), stem[-1]]."""
    end = len(self.stem) - 1
    for index, width in enumerate(self.stem):
      strides = 2 if index == 0 or (index == end and not self.stem_pool) else 1
      x = self._unit(f'stem_{index}', x, width, 3, strides, train)
    return nn.max_pool(x, (3, 3), (2, 2), [(1, 1), (1, 1)]) if self.stem_pool else x

  def _unit(
    self, name: str, x: jax.Array, width: int, side: int, strides: int, train: bool
  ) -> jax.Array:
    """A convolution, its norm and the activation."""
    x = conv(
      width,
      (side, side),
      inputs=x.shape[-1],
      name=f'{name}_conv',
      strides=strides,
      use_bias=False,
      initialization=self.initialization,
      dtype=self.dtype,
    )(x)
    x = norm(self.norm, train=train, name=f'{name}_norm', dtype=self.dtype)(x)
    return activation(self.activation)(x)

  @property
  def timm_names(self) -> Layouts:
    """How timm's ``ByobNet`` calls every layer, see ``jattn.layouts``."""
    names: dict = {'last_conv': Conv('final_conv.conv'), 'last_norm': NormLayout('final_conv.bn')}
    for index in range(len(self.stem)):
      names[f'stem_{index}_conv'] = Conv(f'stem.conv{index + 1}.conv')
      names[f'stem_{index}_norm'] = NormLayout(f'stem.conv{index + 1}.bn')
    for stage, kinds in enumerate(self.blocks):
      for index in range(len(kinds)):
        path, name = f'stage_{stage}_block_{index}/', f'stages.{stage}.{index}.'
        names |= prefixed(self._block(stage, index).timm_names, path=path, name=name)
    return names

  @property
  def timm_head(self) -> Layouts:
    """How timm calls the layer to the classes."""
    return {'logits': Linear('head.fc')}
