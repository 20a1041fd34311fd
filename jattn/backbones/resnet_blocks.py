"""The residual block of all residual networks: basic, bottleneck, and what grew from them."""

import math
from typing import Literal, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.backbones.slots import MakeAttention, Maps, attend_in_block, under
from jattn.layers import Activation, DropPath, Norm, activation, conv, norm
from jattn.layouts import Conv, Layouts, prefixed
from jattn.layouts import Norm as NormLayout
from jattn.ops import Init
from jattn.types import Attended

Kind = Literal['basic', 'bottleneck']
Place = Literal['end', 'convolution']
Shortcut = Literal['projection', 'average', 'pad']
Downsample = Literal['convolution', 'average']
EXPANSION = {'basic': 1, 'bottleneck': 4}


class ResidualBlock(nn.Module):
  """``act(shortcut(x) + attention(F(x)))``, F of two or three convolutions, a norm after each.

  ``basic``: 3x3, 3x3. ``bottleneck``: 1x1 to I, 3x3, 1x1 to 4 W, where ``W`` is ``features`` and
  ``I = floor(W * base_width / 64) * cardinality``. The first 3x3 strides, in a bottleneck too
  (ResNet "v1.5"). He et al. 2015, arXiv 1512.03385; cardinality and base width are ResNeXt's, Xie
  et al. 2016, arXiv 1611.05431.

  A mechanism stands at the ``end`` of the branch, after its last norm and before the addition
  (squeeze-and-excitation, arXiv 1709.01507), or takes the place of the ``convolution`` that
  strides, its norm and its activation: a selective kernel (arXiv 1903.06586) or, in a bottleneck,
  split attention (ResNeSt, arXiv 2004.08955). Norms and activations inside it are its own.

  Attributes:
    features: W; the output has W channels (basic) or 4 W (bottleneck).
    kind: 'basic' or 'bottleneck'.
    strides: of the first 3x3 convolution and of the shortcut.
    cardinality: groups of the 3x3 convolution of a bottleneck.
    base_width: channels of each of its groups, for every 64 of W.
    shortcut: where the shape changes: 'projection' is a strided 1x1 convolution and a norm;
      'average' averages squares of 2x2 first, what there is of them at the border, and does not
      stride after (ResNet-D, He et al. 2018, arXiv 1812.01187); 'pad' takes every other position
      and adds channels of zeros on both sides (option A of the first paper: no parameters).
    downsample: what strides in the branch: the 'convolution', or, where it would, an 'average' of
      3x3 after it, zeros around included (ResNeSt).
    attention: makes the mechanism, or None.
    place: 'end' or 'convolution'; there its ``features`` and ``strides`` are the convolution's.
    norm: 'batch', 'group' or 'layer'.
    activation: what ``act`` is.
    zero_last: whether the last norm's scale starts at zero, so that the block starts as its
      shortcut (Goyal et al. 2017, arXiv 1706.02677).
    initialization: how the convolutions start; 'paper' is He et al. 2015, arXiv 1502.01852.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the branch of an image in training.
  """

  features: int
  kind: Kind = 'basic'
  strides: int = 1
  cardinality: int = 1
  base_width: int = 64
  shortcut: Shortcut = 'projection'
  downsample: Downsample = 'convolution'
  attention: MakeAttention | None = None
  place: Place = 'end'
  norm: Norm = 'batch'
  activation: Activation = 'relu'
  zero_last: bool = False
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, ceil(H / strides), ceil(W / strides), W or 4 W], and maps.

    Raises:
      ValueError: a setting is none of its choices, a basic block is given groups, or the attention
        does not fit its place.
    """
    chex.assert_rank(x, 4)
    self._check()
    act = activation(self.activation)
    layers = self._layers()
    y, maps = x, {}
    for index, layer in enumerate(layers):
      last = index == len(layers) - 1
      averaged = layer.strides > 1 and self.downsample == 'average'
      strides = 1 if averaged else layer.strides
      if layer.spatial and self.attention is not None and self.place == 'convolution':
        y, maps = self._mechanism(y, layer.features, strides, train=train)
      else:
        y = self._conv(f'conv_{index}', layer._replace(strides=strides), y)
        y = self._norm(f'norm_{index}', train, 0.0 if last and self.zero_last else 1.0)(y)
        y = y if last else act(y)
      if averaged:
        y = nn.avg_pool(y, (3, 3), (layer.strides,) * 2, [(1, 1)] * 2)
    if self.place == 'end':
      y, maps = attend_in_block(self, self.attention, y, train=train)
    y = DropPath(self.drop_path)(y, train=train)
    return Attended(act(self._shortcut(x, y.shape[-1], train) + y), maps)

  def _layers(self) -> list['_Layer']:
    if self.kind == 'basic':
      return [
        _Layer(self.features, 3, self.strides, spatial=True),
        _Layer(self.features, 3),
      ]
    inner = math.floor(self.features * self.base_width / 64) * self.cardinality
    return [
      _Layer(inner, 1),
      _Layer(inner, 3, self.strides, self.cardinality, spatial=True),
      _Layer(self.features * EXPANSION['bottleneck'], 1),
    ]

  def _mechanism(
    self, x: jax.Array, features: int, strides: int, *, train: bool
  ) -> tuple[jax.Array, Maps]:
    made = self.attention()
    if not (hasattr(made, 'features') and hasattr(made, 'strides')):
      raise ValueError(
        f'attention in place of a convolution must have fields features and strides; '
        f'{type(made).__name__} has not'
      )
    made = made.clone(features=features, strides=strides, name='attention', parent=self)
    attended = made(x, train=train)
    return attended.features, under('attention', attended.maps)

  def _shortcut(self, x: jax.Array, features: int, train: bool) -> jax.Array:
    if self.strides == 1 and x.shape[-1] == features:
      return x
    strides = self.strides
    if self.shortcut == 'pad':
      missing = features - x.shape[-1]
      sides = (missing // 2, missing - missing // 2)
      return jnp.pad(x[:, ::strides, ::strides], ((0, 0), (0, 0), (0, 0), sides))
    if self.shortcut == 'average' and strides > 1:
      x, strides = _average_squares(x, strides), 1
    x = self._conv('shortcut', _Layer(features, 1, strides), x)
    return self._norm('norm_shortcut', train)(x)

  def _conv(self, name: str, layer: '_Layer', x: jax.Array) -> jax.Array:
    return conv(
      layer.features,
      (layer.side, layer.side),
      inputs=x.shape[-1],
      name=name,
      strides=layer.strides,
      groups=layer.groups,
      use_bias=False,
      initialization=self.initialization,
      dtype=self.dtype,
    )(x)

  def _norm(self, name: str, train: bool, scale: float = 1.0) -> nn.Module:
    start = nn.initializers.constant(scale)
    return norm(self.norm, train=train, name=name, scale_init=start, dtype=self.dtype)

  def _check(self) -> None:
    if self.kind not in EXPANSION:
      raise ValueError(f"{self.kind=} must be 'basic' or 'bottleneck'")
    if self.place not in ('end', 'convolution'):
      raise ValueError(f"{self.place=} must be 'end' or 'convolution'")
    if self.shortcut not in ('projection', 'average', 'pad'):
      raise ValueError(f"{self.shortcut=} must be 'projection', 'average' or 'pad'")
    if self.downsample not in ('convolution', 'average'):
      raise ValueError(f"{self.downsample=} must be 'convolution' or 'average'")
    if self.kind == 'basic' and (self.cardinality, self.base_width) != (1, 64):
      raise ValueError(
        f'{self.cardinality=} and {self.base_width=} must be 1 and 64 in a basic block'
      )


class _Layer(NamedTuple):
  """A convolution of a block; ``spatial`` is the one whose place a mechanism may take."""

  features: int
  side: int
  strides: int = 1
  groups: int = 1
  spatial: bool = False


def _average_squares(x: jax.Array, side: int) -> jax.Array:
  """[B, H, W, C] -> [B, ceil(H / side), ceil(W / side), C]; at the border of what there is."""
  rest = [(0, -size % side) for size in x.shape[1:3]]
  mean = nn.avg_pool(x, (side, side), (side, side), rest, count_include_pad=False)
  return mean.astype(x.dtype)


def block_names(
  *, kind: Kind, place: Place, shortcut: Shortcut, attention: nn.Module | None
) -> Layouts:
  """How timm calls the layers of a ``ResidualBlock``, those of its mechanism included.

  timm builds the block around a selective kernel of convolution-and-norm pairs, whose parts have
  names of their own.
  """
  inner = {} if attention is None else getattr(attention, 'timm_names', {})
  replaced = None
  if attention is not None and place == 'convolution':
    replaced = 0 if kind == 'basic' else 1
  paired = replaced is not None and 'select' in inner
  names: dict = {}
  for index in range(2 if kind == 'basic' else 3):
    if index != replaced:
      pair = (f'conv{index + 1}.conv', f'conv{index + 1}.bn')
      plain = (f'conv{index + 1}', f'bn{index + 1}')
      convolution, normed = pair if paired else plain
      names |= {f'conv_{index}': Conv(convolution), f'norm_{index}': NormLayout(normed)}
  first = 0 if shortcut == 'projection' else 1
  names |= {
    'shortcut': Conv(f'downsample.{first}'),
    'norm_shortcut': NormLayout(f'downsample.{first + 1}'),
  }
  outer = 'se.' if replaced is None else f'conv{replaced + 1}.'
  return names | prefixed(inner, path='attention/', name=outer)
