"""The bottleneck whose middle is a convolution, a convolution and attention, or attention."""

from typing import Literal

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

Kind = Literal['c', 'g', 'a']


class HybridBottleneck(nn.Module):
  """``act(shortcut(x) + norm(W2 middle(act(norm(W0 x)))))``, W0 and W2 1x1 convolutions.

  ====  ==========================================  ======================================
  kind  ``middle``                                  where from
  ====  ==========================================  ======================================
  c     ``act(norm(conv3x3(y)))``                   He et al. 2015, arXiv 1512.03385
  g     ``attention(act(norm(conv3x3(y))))``        timm: a gate over the inner channels
  a     ``act(norm(attention(y)))``                 Srinivas et al. 2021, arXiv 2101.11605
  ====  ==========================================  ======================================

  The middle strides: in c and g its convolution, in a the mechanism where it has a field
  ``strides`` (halo attention, selective kernel, split attention) and otherwise an average of
  squares after it, at the border of what there is of them. Without a mechanism, a is c.

  Attributes:
    features: width of the output.
    inner: width of the middle.
    kind: 'c', 'g' or 'a'.
    strides: of the middle and of the shortcut.
    group_size: channels of each group of the 3x3 convolution; None is one group.
    attention: makes the mechanism, or None.
    norm: 'batch', 'group' or 'layer'.
    activation: what ``act`` is.
    zero_last: whether the last norm's scale starts at zero, so that the block starts as its
      shortcut (Goyal et al. 2017, arXiv 1706.02677).
    initialization: how the convolutions start; 'paper' is normal with variance 2 / fan_out, where
      fan_out counts the outputs of one group.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the branch of an image in training.
  """

  features: int
  inner: int
  kind: Kind = 'c'
  strides: int = 1
  group_size: int | None = None
  attention: MakeAttention | None = None
  norm: Norm = 'batch'
  activation: Activation = 'relu'
  zero_last: bool = False
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, ceil(H / strides), ceil(W / strides), features], and maps.

    Raises:
      ValueError: ``kind`` is none of the three, the groups do not divide the middle, or the
        attention makes another shape than the place asks for.
    """
    chex.assert_rank(x, 4)
    self._check()
    act = activation(self.activation)
    y = self._conv('conv_0', self.inner, 1, x)
    y = act(self._norm('norm_0', train)(y))
    maps: Maps = {}
    if self._attends:
      y, maps = self._attend(y, train=train)
    else:
      y = self._conv('conv_1', self.inner, 3, y, strides=self.strides, groups=self._groups)
    y = act(self._norm('norm_1', train)(y))
    if self.kind == 'g':
      y, maps = attend_in_block(self, self.attention, y, train=train)
    y = self._conv('conv_2', self.features, 1, y)
    y = self._norm('norm_2', train, scale=0.0 if self.zero_last else 1.0)(y)
    y = DropPath(self.drop_path)(y, train=train)
    return Attended(act(self._shortcut(x, train) + y), maps)

  @property
  def _attends(self) -> bool:
    return self.kind == 'a' and self.attention is not None

  @property
  def _groups(self) -> int:
    return 1 if self.group_size is None else self.inner // self.group_size

  def _attend(self, y: jax.Array, *, train: bool) -> tuple[jax.Array, Maps]:
    """[B, H, W, inner] -> [B, ceil(H / strides), ceil(W / strides), inner], and maps."""
    mechanism = self.attention()
    by_itself = self.strides > 1 and hasattr(mechanism, 'strides')
    # A deep clone hangs a wrapped mechanism on its wrapper and not on this block.
    mechanism = mechanism.clone(
      name='attention',
      parent=self,
      _deep_clone=True,
      _reset_names=True,
      **({'strides': self.strides} if by_itself else {}),
    )
    attended = mechanism(y, train=train)
    strides = self.strides if by_itself else 1
    wanted = (y.shape[0], -(-y.shape[1] // strides), -(-y.shape[2] // strides), y.shape[3])
    if attended.features.shape != wanted:
      raise ValueError(
        f'attention in this block must make {wanted} of {y.shape}; {type(mechanism).__name__} '
        f'made {attended.features.shape}'
      )
    y = attended.features
    return y if by_itself else self._average(y), under('attention', attended.maps)

  def _average(self, y: jax.Array) -> jax.Array:
    if self.strides == 1:
      return y
    side = (self.strides, self.strides)
    beyond = [(0, -size % self.strides) for size in y.shape[1:3]]
    return nn.avg_pool(y, side, side, beyond, count_include_pad=False).astype(y.dtype)

  def _shortcut(self, x: jax.Array, train: bool) -> jax.Array:
    if self.strides == 1 and x.shape[-1] == self.features:
      return x
    x = self._conv('shortcut', self.features, 1, x, strides=self.strides)
    return self._norm('norm_shortcut', train)(x)

  def _conv(
    self, name: str, features: int, side: int, x: jax.Array, *, strides: int = 1, groups: int = 1
  ) -> jax.Array:
    # Variance 2 / fan_out of one group; the initializer itself counts the outputs of all of them.
    paper = nn.initializers.variance_scaling(2 * groups, 'fan_out', 'normal')
    return conv(
      features,
      (side, side),
      inputs=x.shape[-1],
      name=name,
      strides=strides,
      groups=groups,
      use_bias=False,
      initialization=self.initialization,
      start=paper if self.initialization == 'paper' else None,
      dtype=self.dtype,
    )(x)

  def _norm(self, name: str, train: bool, scale: float = 1.0) -> nn.Module:
    start = nn.initializers.constant(scale)
    return norm(self.norm, train=train, name=name, scale_init=start, dtype=self.dtype)

  def _check(self) -> None:
    if self.kind not in ('c', 'g', 'a'):
      raise ValueError(f"{self.kind=} must be 'c', 'g' or 'a'")
    if self.group_size is not None and self.inner % self.group_size:
      raise ValueError(f'{self.group_size=} must divide {self.inner=}')

  @property
  def timm_names(self) -> Layouts:
    """How timm calls every layer of the block, see ``jattn.layouts``."""
    names: dict = {'shortcut': Conv('shortcut.conv'), 'norm_shortcut': NormLayout('shortcut.bn')}
    for index, theirs in enumerate(('conv1_1x1', 'conv2_kxk', 'conv3_1x1')):
      names |= {
        f'conv_{index}': Conv(f'{theirs}.conv'),
        f'norm_{index}': NormLayout(f'{theirs}.bn'),
      }
    if self._attends:
      names['norm_1'] = NormLayout('post_attn')
    if self.attention is None or self.kind == 'c':
      return names
    inner = getattr(self.attention(), 'timm_names', {})
    return names | prefixed(
      inner, path='attention/', name='self_attn.' if self._attends else 'attn.'
    )
