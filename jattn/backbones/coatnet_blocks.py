"""The blocks of CoAtNet: inverted bottlenecks with a gate, and transformers over the grid."""

from typing import ClassVar

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.backbones.slots import MakeAttention, attend_in_block
from jattn.layers import (
  Activation,
  DropPath,
  Norm,
  activation,
  conv,
  dense,
  layer_norm,
  norm,
)
from jattn.layouts import Conv, Conv1x1, Layouts, RelativeTable, prefixed
from jattn.layouts import Norm as NormLayout
from jattn.ops import (
  Init,
  attention_weights,
  relative_index,
  reshape,
  resize_relative_geometric,
  round_channels,
  weigh,
)
from jattn.types import Attended, AttentionMap


class MBConv(nn.Module):
  """``shortcut(x) + W1 attention(f(norm(depthwise(f(norm(W0 pool(norm(x))))))))``.

  The inverted bottleneck of Sandler et al. 2018 (MobileNetV2), arXiv 1801.04381, with the norm
  first, as in Dai et al. 2021 (CoAtNet), arXiv 2106.04803. The width inside is ``expand`` times
  that of the input (of the output in the paper). In a strided block the input is averaged over
  2x2 positions before the first convolution, and so is the shortcut; an odd last row or column is
  dropped. Where the width changes, the shortcut has a 1x1 convolution.

  Attributes:
    features: width of the output.
    strides: 1 or 2.
    attention: makes the mechanism on the depthwise convolution's output, or None.
    expand: width inside over the width of the input.
    norm: 'batch', 'group' or 'layer'.
    activation: f, after the second norm and the third.
    initialization: how the convolutions start; 'paper' is normal with variance 2 / fan_out,
      where the fan-out of the depthwise convolution is its window, as in EfficientNet.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the branch of an image in training.
  """

  features: int
  strides: int = 1
  attention: MakeAttention | None = None
  expand: int = 4
  norm: Norm = 'batch'
  activation: Activation = 'silu'
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0

  @property
  def timm_names(self) -> Layouts:
    """How timm calls and stores every layer."""
    return {
      'norm_0': NormLayout('pre_norm'),
      'conv_0': Conv1x1('conv1_1x1'),
      'norm_1': NormLayout('norm1'),
      'conv_1': Conv('conv2_kxk'),
      'norm_2': NormLayout('norm2'),
      'conv_2': Conv1x1('conv3_1x1'),
      'shortcut': Conv1x1('shortcut.expand'),
    } | _slot_names(self.attention, 'se.')

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H // strides, W // strides, features].

    Raises:
      ValueError: the attention changes the shape, or a stride other than 1 and 2.
    """
    function = activation(self.activation)
    inside = round_channels(x.shape[-1] * self.expand, 8)
    kind = {'train': train, 'dtype': self.dtype}
    shortcut = pooled(x, self.strides)
    if x.shape[-1] != self.features:
      shortcut = self._dense('shortcut', self.features, shortcut)
    y = pooled(norm(self.norm, name='norm_0', **kind)(x), self.strides)
    y = self._dense('conv_0', inside, y, use_bias=False)
    y = function(norm(self.norm, name='norm_1', **kind)(y))
    y = self._depthwise(y)
    y = function(norm(self.norm, name='norm_2', **kind)(y))
    y, maps = attend_in_block(self, self.attention, y, train=train)
    y = self._dense('conv_2', self.features, y)
    return Attended(shortcut + DropPath(self.drop_path)(y, train=train), maps)

  def _dense(self, name: str, features: int, x: jax.Array, *, use_bias: bool = True) -> jax.Array:
    return dense(
      features,
      inputs=x.shape[-1],
      name=name,
      initialization=self.initialization,
      use_bias=use_bias,
      dtype=self.dtype,
    )(x)

  def _depthwise(self, x: jax.Array) -> jax.Array:
    paper = nn.initializers.normal((2 / 9) ** 0.5)
    return conv(
      x.shape[-1],
      (3, 3),
      inputs=x.shape[-1],
      name='conv_1',
      groups=x.shape[-1],
      initialization=self.initialization,
      start=paper if self.initialization == 'paper' else None,
      use_bias=False,
      dtype=self.dtype,
    )(x)


class RelativeAttention(nn.Module):
  """``softmax(q k^T / sqrt(D) + b) v`` over all positions; ``b`` a number for each difference.

  The token mixer of Dai et al. 2021 (CoAtNet), arXiv 2106.04803, without the projection that
  follows, which the block keeps. There are C / D heads, and each has a bias for each difference
  query - key of two positions; they start at normal 0.02.

  The table [2H-1, 2W-1, M] is that of the grid at which the parameters were made; at another it is
  resized as timm does (``jattn.ops.resize_relative_geometric``).

  Map: ``weights``, kind ``position``, [B, M, N, N].

  Attributes:
    head_width: D; divides C.
    initialization: how the projection starts; 'paper' is Glorot uniform over queries, keys and
      values together, timm's.
    dtype: what is computed in; None is the input's type.
  """

  head_width: int = 32
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'qkv': Conv1x1('qkv'),
    'relative_bias': RelativeTable('rel_pos.relative_position_bias_table'),
  }

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``weights``.

    Raises:
      ValueError: D does not divide C.
    """
    del train
    chex.assert_rank(x, 4)
    batch, height, width, channels = x.shape
    if channels % self.head_width:
      raise ValueError(f'{self.head_width=} must divide C={channels}')
    heads = channels // self.head_width
    qkv = dense(
      3 * channels,
      inputs=channels,
      name='qkv',
      initialization=self.initialization,
      start=glorot(self.initialization),
      dtype=self.dtype,
    )(x)
    # Head by head, as timm packs them: the queries, keys and values of the first, of the second...
    q, k, v = jnp.split(reshape(qkv, batch, height * width, heads, -1), 3, axis=-1)
    weights = attention_weights(q, k, bias=self._bias((height, width), heads))
    maps = {'weights': AttentionMap(weights, 'position', (height, width))}
    return Attended(reshape(weigh(weights, v), *x.shape), maps)

  def _bias(self, grid: tuple[int, int], heads: int) -> jax.Array:
    """[M, N, N]."""
    if self.has_variable('params', 'relative_bias'):
      table = self.get_variable('params', 'relative_bias')  # may have been made at another grid
    else:
      shape = (2 * grid[0] - 1, 2 * grid[1] - 1, heads)
      table = self.param('relative_bias', nn.initializers.normal(0.02), shape, jnp.float32)
    table = resize_relative_geometric(table, grid).reshape(-1, heads)
    return jnp.moveaxis(table[relative_index(grid, sign='query-key')], -1, 0)


class TransformerBlock(nn.Module):
  """``y = shortcut(x) + W attention(pool(norm(x)))``, then ``y + W1 gelu(W0 norm(y))``.

  Dai et al. 2021 (CoAtNet), arXiv 2106.04803, with the norm first and the change of width in the
  projection W after the attention (timm's; in the paper the queries, keys and values change it).
  In a strided block the normed input is averaged over 2x2 positions, and so is the shortcut; an odd
  last row or column is dropped. Where the width changes, the shortcut has a 1x1 convolution.

  Attributes:
    features: width of the output.
    strides: 1 or 2.
    attention: makes the token mixer, which keeps the shape; without one the whole branch, norm and
      projection, is left out.
    expand: width inside the perceptron over that of its input.
    initialization: how the layers start; 'paper' is Glorot uniform with zero biases, timm's.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping each branch of an image in training.
  """

  features: int
  strides: int = 1
  attention: MakeAttention | None = RelativeAttention
  expand: int = 4
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0

  @property
  def timm_names(self) -> Layouts:
    """How timm calls and stores every layer."""
    return {
      'norm_0': NormLayout('norm1.norm' if self.strides == 2 else 'norm1'),
      'out': Conv1x1('attn.proj'),
      'norm_1': NormLayout('norm2'),
      'mlp_0': Conv1x1('mlp.fc1'),
      'mlp_1': Conv1x1('mlp.fc2'),
      'shortcut': Conv1x1('shortcut.expand'),
    } | _slot_names(self.attention, 'attn.')

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H // strides, W // strides, features].

    Raises:
      ValueError: the attention changes the shape, or a stride other than 1 and 2.
    """
    shortcut, maps = pooled(x, self.strides), {}
    if x.shape[-1] != self.features:
      shortcut = self._dense('shortcut', self.features, shortcut)
    y = shortcut
    if self.attention is not None:
      mixed = pooled(layer_norm(name='norm_0', dtype=self.dtype)(x), self.strides)
      mixed, maps = attend_in_block(self, self.attention, mixed, train=train)
      mixed = self._dense('out', self.features, mixed)
      y = shortcut + DropPath(self.drop_path)(mixed, train=train)
    z = layer_norm(name='norm_1', dtype=self.dtype)(y)
    z = activation('gelu')(self._dense('mlp_0', self.expand * self.features, z))
    z = self._dense('mlp_1', self.features, z)
    return Attended(y + DropPath(self.drop_path)(z, train=train), maps)

  def _dense(self, name: str, features: int, x: jax.Array) -> jax.Array:
    return dense(
      features,
      inputs=x.shape[-1],
      name=name,
      initialization=self.initialization,
      start=glorot(self.initialization),
      dtype=self.dtype,
    )(x)


def pooled(x: jax.Array, strides: int) -> jax.Array:
  """[B, H, W, C] -> [B, H // strides, W // strides, C], the averages of squares.

  Raises:
    ValueError: ``strides`` is neither 1 nor 2.
  """
  if strides not in (1, 2):
    raise ValueError(f'{strides=} must be 1 or 2')
  return x if strides == 1 else nn.avg_pool(x, (2, 2), strides=(2, 2))


def glorot(initialization: Init) -> jax.nn.initializers.Initializer | None:
  """How the linear layers of a transformer start where ``initialization`` is the paper's."""
  return nn.initializers.glorot_uniform() if initialization == 'paper' else None


def _slot_names(make: MakeAttention | None, name: str) -> Layouts:
  names = {} if make is None else getattr(make(), 'timm_names', {})
  return prefixed(names, path='attention/', name=name)
