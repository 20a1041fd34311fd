"""The compact convolutional transformer: convolutions make the tokens of a small transformer."""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

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
  Dropout,
  DropPath,
  activation,
  conv,
  dense,
  drop_path_rates,
  layer_norm,
)
from jattn.ops import Init, attention_weights, reshape, weigh
from jattn.types import Attended, AttentionMap

EPSILON = 1e-5  # of the layer norms, PyTorch's own


class CompactAttention(nn.Module):
  """``softmax(q k^T / sqrt(D)) v W + b`` by heads; queries, keys and values have no bias.

  The self-attention of Hassani et al. 2021 (CCT), arXiv 2104.05704. In training a share of the
  weights is dropped and the others scaled up; the map shows them before that.

  Map: ``weights``, kind ``position``, [B, M, N, N].

  Attributes:
    num_heads: M; divides C.
    dropout: probability of dropping a weight in training.
    initialization: how the layers start; 'paper' is normal with deviation 0.02.
    dtype: what is computed in; None is the input's type.
  """

  num_heads: int = 4
  dropout: float = 0.1
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the map ``weights``.

    Raises:
      ValueError: M does not divide C.
    """
    chex.assert_rank(x, 4)
    batch, height, width, channels = x.shape
    if channels % self.num_heads:
      raise ValueError(f'{self.num_heads=} must divide C={channels}')

    def project(name: str) -> jax.Array:
      heads = _dense(self, name, channels, x, use_bias=False)
      return reshape(heads, batch, height * width, self.num_heads, -1)

    weights = attention_weights(project('query'), project('key'))
    kept = Dropout(self.dropout, deterministic=not train)(weights)
    out = reshape(weigh(kept, project('value')), *x.shape)
    maps = {'weights': AttentionMap(weights, 'position', (height, width))}
    return Attended(_dense(self, 'out', channels, out), maps)


class CompactBlock(nn.Module):
  """``z = norm(x + attention(norm(x)))``, then ``z + W1 f(W0 z)``; f is the activation.

  Hassani et al. 2021 (CCT), arXiv 2104.05704, as the authors' code has it: the second norm is on
  the sum, so that the shortcut of the perceptron begins after it. A pre-norm block, which the paper
  draws, would keep ``x + attention(norm(x))`` for that shortcut.

  Attributes:
    attention: makes what mixes the tokens, which keeps the shape; None leaves the branch out.
    mlp_ratio: hidden width of the perceptron over C.
    activation: f.
    initialization: how the layers start; 'paper' is normal with deviation 0.02.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping a branch of an image in training.
  """

  attention: MakeAttention | None = CompactAttention
  mlp_ratio: float = 2.0
  activation: Activation = 'gelu'
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, C] -> features [B, H, W, C] and the mechanism's maps.

    Raises:
      ValueError: the attention changes the shape.
    """
    maps: Maps = {}
    if self.attention is not None:
      y = layer_norm(name='norm_0', epsilon=EPSILON, dtype=self.dtype)(x)
      y, maps = attend_in_block(self, self.attention, y, train=train)
      x = x + DropPath(self.drop_path)(y, train=train)
    x = layer_norm(name='norm_1', epsilon=EPSILON, dtype=self.dtype)(x)
    y = _dense(self, 'expand', int(self.mlp_ratio * x.shape[-1]), x)
    y = _dense(self, 'reduce', x.shape[-1], activation(self.activation)(y))
    return Attended(x + DropPath(self.drop_path)(y, train=train), maps)


class CCT(nn.Module):
  """Convolutions that make tokens, positions, blocks of self-attention and perceptron, a norm.

  Hassani et al. 2021, arXiv 2104.05704. The tokenizer is ``max_pool(relu(conv(x)))`` for each
  convolution, 3x3 without bias, the pooling 3x3 with stride 2. Every token has a position: a
  learned vector for each of the grid at which the parameters were made, interpolated linearly at
  another, as the authors' code does; or sines and cosines of its number, row by row.

  ``attention`` is what mixes the tokens of each block: any mechanism that keeps the shape can stand
  there.

  Maps: those of each block, under ``stage_0/block_I/attention/...``; the blocks' own attention has
  ``weights``, kind ``position``, [B, M, N, N]. The only stage is after the norm.

  Attributes:
    depth: number of blocks.
    width: C.
    num_heads: M of the blocks' own attention.
    mlp_ratio: hidden width of the perceptron over C.
    stem: channels of the convolutions before the last, each halving the grid: (64,) is two.
    positions: 'learned', 'sinusoidal' or 'none'.
    attention: makes what mixes the tokens; 'self' is ``CompactAttention``, None leaves it out.
    attention_dropout: probability of dropping a weight of the blocks' own attention in training.
    activation: of the perceptrons; 'gelu' is the exact one.
    drop_path: probability of dropping the last block's branches, rising evenly from the first's 0.
    initialization: how the layers start; 'paper' is the authors': linear layers normal with
      deviation 0.02, convolutions with variance 2 / fan_in, positions with deviation 0.2.
    dtype: what is computed in; None is the input's type.
    inserts: (place, what makes the mechanism after it), see ``jattn.backbones.slots``.
    remat: whether the activations of a block are made again in the backward pass.
  """

  depth: int = 7
  width: int = 256
  num_heads: int = 4
  mlp_ratio: float = 2.0
  stem: Sequence[int] = ()
  positions: Literal['learned', 'sinusoidal', 'none'] = 'learned'
  attention: MakeAttention | Literal['self'] | None = 'self'
  attention_dropout: float = 0.1
  activation: Activation = 'gelu'
  drop_path: float = 0.0
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  inserts: Inserts = ()
  remat: bool = False

  # Of a leaf, the axes along which lie positions of the grid it was trained at: a file may have
  # another grid than the model's.
  tables: ClassVar[Mapping[str, tuple[int, ...]]] = {'positions': (0, 1)}

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, 3] -> features [B, H', W', width], each convolution halving H and W rounded up.

    Raises:
      ValueError: ``positions`` is none of the three.
    """
    chex.assert_rank(images, 4)
    check_inserts(self.inserts, places((self.depth,)))
    x = self._tokens(images)
    if self.positions != 'none':
      x = (x + self._positions(x.shape[1:3])[None]).astype(x.dtype)
    rates = drop_path_rates(self.drop_path, (self.depth,))[0]
    blocks = (self._block(index, rate) for index, rate in enumerate(rates))
    x, maps = run_stage(self, 0, blocks, x, train=train)
    x = layer_norm(name='norm', epsilon=EPSILON, dtype=self.dtype)(x)
    return Attended(x, maps, (x,))

  def _block(self, index: int, rate: float) -> CompactBlock:
    return CompactBlock(
      self._own if self.attention == 'self' else self.attention,
      self.mlp_ratio,
      self.activation,
      self.initialization,
      self.dtype,
      rate,
      name=f'stage_0_block_{index}',
    )

  def _tokens(self, x: jax.Array) -> jax.Array:
    for index, features in enumerate((*self.stem, self.width)):
      he = nn.initializers.he_normal() if self.initialization == 'paper' else None
      x = conv(
        features,
        (3, 3),
        inputs=x.shape[-1],
        name=f'conv_{index}',
        initialization=self.initialization,
        start=he,
        use_bias=False,
        dtype=self.dtype,
      )(x)
      x = nn.max_pool(nn.relu(x), (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    return x

  def _positions(self, grid: tuple[int, int]) -> jax.Array:
    """[H, W, C]."""
    if self.positions == 'sinusoidal':
      return jnp.asarray(sinusoids(grid[0] * grid[1], self.width).reshape(*grid, -1))
    if self.positions != 'learned':
      raise ValueError(f"{self.positions=} must be 'learned', 'sinusoidal' or 'none'")
    if self.has_variable('params', 'positions'):
      table = self.get_variable('params', 'positions')  # may have been made at another grid
    else:
      table = self.param('positions', nn.initializers.normal(0.2), (*grid, self.width), jnp.float32)
    return jax.image.resize(table, (*grid, self.width), 'linear', antialias=False)

  @nn.nowrap
  def _own(self) -> nn.Module:
    return CompactAttention(
      self.num_heads, self.attention_dropout, self.initialization, self.dtype, parent=None
    )


def sinusoids(count: int, width: int) -> np.ndarray:
  """[count, width] float32: ``sin(p / 10000^(i / width))`` for even i, then the cosine of the same.

  Vaswani et al. 2017, section 3.5, arXiv 1706.03762.

  >>> sinusoids(2, 2).round(3).tolist()
  [[0.0, 1.0], [0.8410000205039978, 0.5400000214576721]]
  """
  even = np.arange(width) // 2 * 2
  angles = np.arange(count)[:, None] / 10000 ** (even / width)
  return np.where(np.arange(width) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)


def _dense(
  module: CompactAttention | CompactBlock,
  name: str,
  features: int,
  x: jax.Array,
  *,
  use_bias: bool = True,
) -> jax.Array:
  """A linear layer of ``module``, in whose compact method it is called."""
  return dense(
    features,
    inputs=x.shape[-1],
    name=name,
    initialization=module.initialization,
    start=nn.initializers.normal(0.02) if module.initialization == 'paper' else None,
    use_bias=use_bias,
    dtype=module.dtype,
  )(x)
