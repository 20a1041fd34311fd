"""CoAtNet: convolutions with gates in the first stages, transformers in the last."""

import functools
from collections.abc import Sequence
from typing import Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.backbones.coatnet_blocks import MBConv, RelativeAttention, TransformerBlock
from jattn.backbones.slots import Inserts, MakeAttention, Maps, check_inserts, places, run_stage
from jattn.layers import Activation, Norm, activation, conv, drop_path_rates, layer_norm, norm
from jattn.layouts import Conv, Layouts, Linear, prefixed
from jattn.layouts import Norm as NormLayout
from jattn.ops import Init
from jattn.types import Attended


class CoAtNet(nn.Module):
  """Stem, stages of inverted bottlenecks ('C') and of transformers ('T'), a last layer norm.

  Dai et al. 2021, arXiv 2106.04803, in the form of timm's ``coatnet_*_rw`` models. The stem is two
  3x3 convolutions, the first of stride 2 with norm and activation after it; the first block of
  every stage halves H and W, rounding down.

  There are two slots. ``gate`` is the mechanism inside the blocks of the convolutional stages (the
  paper's is squeeze-and-excitation), ``attention`` the token mixer of the transformer stages: any
  mechanism that keeps the shape can stand there, and the block's projection comes after it.

  Maps: those of each block, under ``stage_S/block_I/attention/...``; the blocks' own attention has
  ``weights``, kind ``position``, [B, M, N, N]. The last of the stages is after the last norm.

  Attributes:
    depths: blocks of each stage.
    widths: channels of each stage.
    stem: channels of the stem's two convolutions.
    blocks: 'C' or 'T' for each stage.
    attention: makes the token mixer of each transformer block; 'self' is ``RelativeAttention``,
      None leaves the branch out.
    gate: makes the mechanism of each convolutional block, or None.
    head_width: D of the blocks' own attention.
    expand: width inside a block over that of its input.
    norm: of stem and convolutional blocks, 'batch', 'group' or 'layer'; transformers have layer
      norms.
    activation: of stem and convolutional blocks; transformers have the exact GELU.
    drop_path: probability of dropping the last block's branches, rising evenly from the first's 0.
    initialization: how the layers start; 'paper' is timm's, see the blocks.
    dtype: what is computed in; None is the input's type.
    inserts: (place, what makes the mechanism after it), see ``jattn.backbones.slots``.
    remat: whether the activations of a block are made again in the backward pass.
  """

  depths: Sequence[int] = (3, 4, 6, 3)
  widths: Sequence[int] = (64, 128, 256, 512)
  stem: Sequence[int] = (32, 64)
  blocks: str = 'CCTT'
  attention: MakeAttention | Literal['self'] | None = 'self'
  gate: MakeAttention | None = None
  head_width: int = 32
  expand: int = 4
  norm: Norm = 'batch'
  activation: Activation = 'silu'
  drop_path: float = 0.0
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  inserts: Inserts = ()
  remat: bool = False

  @property
  def timm_names(self) -> Layouts:
    """How timm calls and stores every layer."""
    names = {
      'stem_conv_0': Conv('stem.conv1'),
      'stem_norm': NormLayout('stem.norm1'),
      'stem_conv_1': Conv('stem.conv2'),
      'norm': NormLayout('norm'),
    }
    for stage, depth in enumerate(self.depths):
      for index in range(depth):
        block = self._block(stage, index, parent=None)
        path, name = f'stage_{stage}_block_{index}/', f'stages.{stage}.blocks.{index}.'
        names |= prefixed(block.timm_names, path=path, name=name)
    return names

  @property
  def timm_head(self) -> Layouts:
    """How timm calls and stores the classifier."""
    return {'logits': Linear('head.fc')}

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, 3] -> features [B, H', W', widths[-1]], H' = ceil(H / 2) // 2^stages; and maps.

    Raises:
      ValueError: the stages' settings disagree, or the images are too small.
    """
    chex.assert_rank(images, 4)
    self._check(images)
    x = self._stem(images, train)
    maps: Maps = {}
    stages = []
    for stage, depth in enumerate(self.depths):
      names = [f'stage_{stage}_block_{index}' for index in range(depth)]
      blocks = (self._block(stage, index, name=name) for index, name in enumerate(names))
      x, found = run_stage(self, stage, blocks, x, train=train)
      maps |= found
      stages.append(x)
    x = layer_norm(name='norm', dtype=self.dtype)(x)
    return Attended(x, maps, (*stages[:-1], x))

  def _stem(self, x: jax.Array, train: bool) -> jax.Array:
    def convolve(name: str, features: int, x: jax.Array, strides: int) -> jax.Array:
      return conv(
        features,
        (3, 3),
        inputs=x.shape[-1],
        name=name,
        strides=strides,
        initialization=self.initialization,
        use_bias=False,
        dtype=self.dtype,
      )(x)

    x = convolve('stem_conv_0', self.stem[0], x, 2)
    x = norm(self.norm, train=train, name='stem_norm', dtype=self.dtype)(x)
    return convolve('stem_conv_1', self.stem[1], activation(self.activation)(x), 1)

  @nn.nowrap
  def _block(self, stage: int, index: int, **where) -> nn.Module:
    settings = {
      'strides': 1 if index else 2,
      'expand': self.expand,
      'initialization': self.initialization,
      'dtype': self.dtype,
      'drop_path': drop_path_rates(self.drop_path, tuple(self.depths))[stage][index],
    }
    if self.blocks[stage] == 'T':
      mixer = self._own() if self.attention == 'self' else self.attention
      return TransformerBlock(self.widths[stage], attention=mixer, **settings, **where)
    settings |= {'norm': self.norm, 'activation': self.activation}
    return MBConv(self.widths[stage], attention=self.gate, **settings, **where)

  @nn.nowrap
  def _own(self) -> MakeAttention:
    return functools.partial(RelativeAttention, self.head_width, self.initialization, self.dtype)

  def _check(self, images: jax.Array) -> None:
    if not len(self.depths) == len(self.widths) == len(self.blocks):
      raise ValueError(f'{self.depths=}, {self.widths=} and {self.blocks=} must be equally many')
    if set(self.blocks) - set('CT'):
      raise ValueError(f"{self.blocks=} must be of 'C' and 'T'")
    check_inserts(self.inserts, places(tuple(self.depths)))
    least = 2 ** (len(self.depths) + 1) - 1
    if min(images.shape[1:3]) < least:
      raise ValueError(f'images must be at least {least}x{least}, got {images.shape[1:3]}')
