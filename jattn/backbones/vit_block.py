"""The pre-norm block of vision transformers: self-attention of tokens, and an MLP for each."""

from typing import ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.backbones.slots import MakeAttention, Maps, attend_in_block
from jattn.layers import Activation, DropPath, LayerScale, activation, dense, layer_norm
from jattn.layouts import Layouts, Linear, Linen
from jattn.ops import Init, attention_weights, reshape, weigh
from jattn.types import Attended, AttentionMap

Mixing = MakeAttention | Literal['self'] | None
Grid = tuple[int, int]


class TokenAttention(nn.Module):
  """Multi-head self-attention of tokens: ``softmax(Q K^T / sqrt(D)) V W_O + b``, by heads.

  Vaswani et al. 2017, arXiv 1706.03762. Queries, keys and values have a bias too; that of the keys
  cannot move the output, since softmax ignores it.

  Attributes:
    num_heads: M.
    initialization: how the layers start; 'paper' as for ``ViT``.
    dtype: what projections and products are computed in; None is the input's type.
  """

  num_heads: int
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None

  timm_names: ClassVar[Layouts] = {
    'query': Linear('qkv', 0, 3),
    'key': Linear('qkv', 1, 3),
    'value': Linear('qkv', 2, 3),
    'out': Linear('proj'),
  }

  @property
  def big_vision_names(self) -> Layouts:
    """How Flax's own attention stores the layers."""
    names = {name: Linen(name, heads=self.num_heads) for name in ('query', 'key', 'value')}
    return names | {'out': Linen('out', heads=self.num_heads, inputs=True)}

  @nn.compact
  def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[B, T, C] -> [B, T, C] and the weights [B, M, T, T].

    Raises:
      ValueError: M does not divide C.
    """
    batch, count, channels = x.shape
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')

    def project(name: str) -> jax.Array:
      out = _dense(self, name, channels, x)
      return reshape(out, batch, count, self.num_heads, channels // self.num_heads)

    weights = attention_weights(project('query'), project('key'))
    out = reshape(weigh(weights, project('value')), *x.shape)
    return _dense(self, 'out', channels, out), weights


class ViTBlock(nn.Module):
  """``x + mix(norm(x))``, then ``x + mlp(norm(x))``: the pre-norm block of vision transformers.

  The tokens are the positions of a grid, row by row, behind the class token if there is one. The
  MLP has one hidden layer, the norms are layer norms with epsilon 1e-6.

  Map: ``attention/weights``, kind ``position``, [B, M, T, T] over all tokens; its ``keys`` are -1
  for the class token, which is the first query too.

  Attributes:
    num_heads: M, of self-attention.
    grid: H, W.
    class_token: whether the first token is none of the grid.
    attention: what mixes the tokens, see ``ViT``.
    mlp_ratio: hidden width of the MLP over C.
    activation: of the MLP.
    init_values: start of the factor on each branch; None leaves the factors out.
    drop_path: probability of dropping a branch of an image in training.
    initialization: how the layers start; 'paper' as for ``ViT``.
    dtype: what is computed in; None is the input's type.
  """

  num_heads: int
  grid: Grid
  class_token: bool = True
  attention: Mixing = 'self'
  mlp_ratio: float = 4.0
  activation: Activation = 'gelu'
  init_values: float | None = None
  drop_path: float = 0.0
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, T, C] -> features [B, T, C] and the maps.

    Raises:
      ValueError: M does not divide C, or the attention changes the shape.
    """
    maps: Maps = {}
    if self.attention is not None:
      y = layer_norm(name='norm_0', dtype=self.dtype)(x)
      y, maps = self._mix(y, train)
      x = x + self._branch('scale_0', y, train)
    y = layer_norm(name='norm_1', dtype=self.dtype)(x)
    y = _dense(self, 'expand', int(self.mlp_ratio * x.shape[-1]), y)
    y = _dense(self, 'reduce', x.shape[-1], activation(self.activation)(y))
    return Attended(x + self._branch('scale_1', y, train), maps)

  def _mix(self, y: jax.Array, train: bool) -> tuple[jax.Array, Maps]:
    if self.attention != 'self':
      plane = reshape(y, y.shape[0], *self.grid, -1)
      plane, maps = attend_in_block(self, self.attention, plane, train=train)
      return reshape(plane, *y.shape), maps
    attention = TokenAttention(self.num_heads, self.initialization, self.dtype, name='attention')
    y, weights = attention(y)
    keys = None
    if self.class_token:
      count = y.shape[1]
      keys = jnp.broadcast_to(jnp.arange(-1, count - 1, dtype=jnp.int32)[None], (count, count))
    return y, {'attention/weights': AttentionMap(weights, 'position', self.grid, keys)}

  def _branch(self, name: str, y: jax.Array, train: bool) -> jax.Array:
    if self.init_values is not None:
      y = LayerScale(self.init_values, name=name)(y)
    return DropPath(self.drop_path)(y, train=train)


def _dense(module: TokenAttention | ViTBlock, name: str, features: int, x: jax.Array) -> jax.Array:
  """A linear layer of ``module``, in whose compact method it is called."""
  return dense(
    features,
    inputs=x.shape[-1],
    name=name,
    initialization=module.initialization,
    start=nn.initializers.normal(0.02) if module.initialization == 'paper' else None,
    dtype=module.dtype,
  )(x)
