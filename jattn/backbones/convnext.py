"""ConvNeXt: large depthwise convolutions in blocks shaped like a transformer's."""

from collections.abc import Sequence

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
  places,
  run_stage,
)
from jattn.layers import (
  Activation,
  DropPath,
  LayerScale,
  activation,
  conv,
  dense,
  drop_path_rates,
  layer_norm,
)
from jattn.layouts import Array, Conv, Conv1x1, Layouts, Linear, Norm, prefixed
from jattn.ops import Init
from jattn.types import Attended


class ConvNeXtBlock(nn.Module):
  """``x + gamma * attention(mlp(norm(depthwise(x))))``, all of it at one width and resolution.

  Liu et al. 2022, arXiv 2201.03545. The MLP is two 1x1 convolutions; the norm is a layer norm over
  the channels of a position, epsilon 1e-6. The attention, which the paper has not, is applied to
  the branch just before ``gamma``.

  Attributes:
    attention: makes the mechanism, or None.
    kernel_size: side of the depthwise convolution.
    mlp_ratio: hidden width of the MLP over C.
    activation: of the MLP.
    init_values: start of ``gamma``; None leaves it out.
    drop_path: probability of dropping the branch of an image in training.
    initialization: how the layers start; 'paper' as for ``ConvNeXt``.
    dtype: what is computed in; None is the input's type.
  """

  attention: MakeAttention | None = None
  kernel_size: int = 7
  mlp_ratio: float = 4.0
  activation: Activation = 'gelu'
  init_values: float | None = 1e-6
  drop_path: float = 0.0
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C].

    Raises:
      ValueError: the attention changes the shape.
    """
    channels = x.shape[-1]
    settings = {'initialization': self.initialization, 'start': _start(self.initialization)}
    settings |= {'dtype': self.dtype}
    kernel = (self.kernel_size, self.kernel_size)
    y = conv(channels, kernel, inputs=channels, name='depthwise', groups=channels, **settings)(x)
    y = layer_norm(name='norm', dtype=self.dtype)(y)
    hidden = int(self.mlp_ratio * channels)
    y = dense(hidden, inputs=channels, name='expand', **settings)(y)
    y = activation(self.activation)(y)
    y = dense(channels, inputs=hidden, name='reduce', **settings)(y)
    y, maps = attend_in_block(self, self.attention, y, train=train)
    if self.init_values is not None:
      y = LayerScale(self.init_values, name='scale')(y)
    return Attended(x + DropPath(self.drop_path)(y, train=train), maps)


class ConvNeXt(nn.Module):
  """ConvNeXt: a stem of patches and stages of ``ConvNeXtBlock``, each at half the resolution.

  Liu et al. 2022, arXiv 2201.03545. Stem and downsampling are convolutions whose stride is their
  side, so that rows and columns that do not fill a patch are dropped; the stem is followed by a
  layer norm, the downsampling preceded by one. There is no norm after the last stage: that of the
  head comes after the pooling.

  ``initialization`` 'paper' is the authors' and timm's: kernels normal with standard deviation
  0.02, biases zero.

  Maps: those of each block, under ``stage_S/block_I/attention/...``.

  Attributes:
    depths: blocks of each stage.
    widths: channels of each stage.
    attention: makes the mechanism of each block, or None.
    patch_size: side of the stem's patches.
    kernel_size: side of the depthwise convolutions.
    mlp_ratio: hidden width of the MLPs over C.
    init_values: start of the factor on each branch; None leaves the factors out.
    activation: of the MLPs.
    initialization: how the layers start.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the last block's branch, rising evenly from the first's 0.
    inserts: (place, what makes the mechanism after it), see ``jattn.backbones.slots``.
    remat: whether the activations of a block are made again in the backward pass.
  """

  depths: Sequence[int] = (3, 3, 9, 3)
  widths: Sequence[int] = (96, 192, 384, 768)
  attention: MakeAttention | None = None
  patch_size: int = 4
  kernel_size: int = 7
  mlp_ratio: float = 4.0
  init_values: float | None = 1e-6
  activation: Activation = 'gelu'
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0
  inserts: Inserts = ()
  remat: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, 3] -> features [B, H / 32, W / 32, widths[-1]] (rounded down) and the maps.

    Raises:
      ValueError: the images are too small, or there are not as many widths as depths.
    """
    self._check(images)
    x = self._patches('stem', self.widths[0], self.patch_size, images)
    x = layer_norm(name='stem_norm', dtype=self.dtype)(x)
    rates = drop_path_rates(self.drop_path, tuple(self.depths))
    maps: Maps = {}
    stages = []
    for stage, depth in enumerate(self.depths):
      if stage:
        x = layer_norm(name=f'downsample_{stage}_norm', dtype=self.dtype)(x)
        x = self._patches(f'downsample_{stage}', self.widths[stage], 2, x)
      blocks = (self._block(stage, index, rates[stage][index]) for index in range(depth))
      x, found = run_stage(self, stage, blocks, x, train=train)
      maps |= found
      stages.append(x)
    return Attended(x, maps, tuple(stages))

  def _block(self, stage: int, index: int, rate: float) -> ConvNeXtBlock:
    return ConvNeXtBlock(
      self.attention,
      self.kernel_size,
      self.mlp_ratio,
      self.activation,
      self.init_values,
      rate,
      self.initialization,
      self.dtype,
      name=f'stage_{stage}_block_{index}',
    )

  def _check(self, images: jax.Array) -> None:
    chex.assert_rank(images, 4)
    if len(self.depths) != len(self.widths):
      raise ValueError(f'{self.depths=} and {self.widths=} must be of one length')
    check_inserts(self.inserts, places(tuple(self.depths)))
    smallest = self.patch_size * 2 ** (len(self.depths) - 1)
    if min(images.shape[1:3]) < smallest:
      height, width = images.shape[1:3]
      raise ValueError(f'images must be at least {smallest}x{smallest}, got {height}x{width}')

  def _patches(self, name: str, features: int, side: int, x: jax.Array) -> jax.Array:
    return conv(
      features,
      (side, side),
      inputs=x.shape[-1],
      name=name,
      strides=side,
      padding=0,
      initialization=self.initialization,
      start=_start(self.initialization),
      dtype=self.dtype,
    )(x)

  @property
  def timm_names(self) -> Layouts:
    """How timm calls and stores every layer, where its MLPs are 1x1 convolutions."""
    names = {'stem': Conv('stem.0'), 'stem_norm': Norm('stem.1')}
    block = {'depthwise': Conv('conv_dw'), 'norm': Norm('norm')}
    block |= {'expand': Conv1x1('mlp.fc1'), 'reduce': Conv1x1('mlp.fc2')}
    if self.init_values is not None:
      block |= {'scale': Array('gamma')}
    if self.attention is not None:
      block |= prefixed(getattr(self.attention(), 'timm_names', {}), path='attention/')
    for stage, depth in enumerate(self.depths):
      if stage:
        names |= {f'downsample_{stage}_norm': Norm(f'stages.{stage}.downsample.0')}
        names |= {f'downsample_{stage}': Conv(f'stages.{stage}.downsample.1')}
      for index in range(depth):
        path, name = f'stage_{stage}_block_{index}/', f'stages.{stage}.blocks.{index}.'
        names |= prefixed(block, path=path, name=name)
    return names

  @property
  def timm_head(self) -> Layouts:
    """How timm calls the norm after the pooling and the linear layer."""
    return {'norm': Norm('head.norm'), 'logits': Linear('head.fc')}


def _start(initialization: Init) -> jax.nn.initializers.Initializer | None:
  return nn.initializers.normal(0.02) if initialization == 'paper' else None
