"""Vision transformers: an image as a sequence of patches, with or without a class token."""

import dataclasses

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.backbones.slots import Inserts, Maps, check_inserts, insert, places, run, under
from jattn.backbones.vit_block import Grid, Mixing, TokenAttention, ViTBlock
from jattn.layers import Activation, conv, drop_path_rates, layer_norm
from jattn.layouts import Array, Conv, Layouts, Linear, Linen, Norm, Positions, prefixed
from jattn.ops import Init, for_each_image, reshape, resize_positions
from jattn.types import Attended

# How Linen numbers the layers of a block: big_vision's, and the older ones of the paper's code.
_NEWER = ('MultiHeadDotProductAttention_0', 'LayerNorm_1', 'MlpBlock_0')
_OLDER = ('MultiHeadDotProductAttention_1', 'LayerNorm_2', 'MlpBlock_3')


class ViT(nn.Module):
  """Vision transformer: patches, learned positions, blocks of self-attention and MLP, a norm.

  Dosovitskiy et al. 2020, arXiv 2010.11929. The images are cut into patches, each is projected to a
  token, the position of each is added, and a class token may go first; after the blocks and the
  norm it is ``vector`` and the rest, back on the grid, ``features``.

  ``positions`` [H, W, C] are those of the grid at which the parameters were made; at another they
  are resized as timm does it (``jattn.ops.resize_positions``), and the class token keeps its own.

  ``attention`` is what mixes the tokens of each block: 'self' is multi-head self-attention, with
  the class token if there is one. What makes a mechanism puts that in its place, on the grid, and
  None leaves the mixing out: both only where there is no class token.

  ``initialization`` 'paper' is timm's: linear layers start normal with standard deviation 0.02 and
  without bias, the patch projection as PyTorch starts a convolution, positions normal with 0.02,
  the class token with 1e-6. The authors' code starts linear layers Xavier-uniform and computes the
  tanh form of GELU (``activation='gelu_tanh'``).

  Maps: those of each block, under ``stage_0/block_I/attention/...``.

  Attributes:
    patch_size: side of a patch; divides the height and the width of the images.
    width: C.
    depth: number of blocks.
    num_heads: M.
    mlp_ratio: hidden width of the MLP over C.
    attention: what mixes the tokens.
    class_token: whether there is one.
    class_position: whether the class token has a position, as in the paper and timm; big_vision
      since 2022 has none (timm: ``no_embed_class``).
    final_norm: whether there is a norm after the last block.
    init_values: start of the factor on each branch; None leaves the factors out.
    activation: of the MLP; 'gelu' is the exact one, as timm's.
    initialization: how the layers start.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the last block's branches, rising evenly from the first's 0.
    inserts: (place, what makes the mechanism after it), see ``jattn.backbones.slots``; on the grid,
      the class token passes by.
    remat: whether the activations of a block are made again in the backward pass.
  """

  patch_size: int = 16
  width: int = 768
  depth: int = 12
  num_heads: int = 12
  mlp_ratio: float = 4.0
  attention: Mixing = 'self'
  class_token: bool = True
  class_position: bool = True
  final_norm: bool = True
  init_values: float | None = None
  activation: Activation = 'gelu'
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0
  inserts: Inserts = ()
  remat: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, 3] -> features [B, H / patch_size, W / patch_size, width], maps and ``vector``.

    Raises:
      ValueError: the patches do not fill the images, ``num_heads`` does not divide ``width``, or
        there is a class token and no self-attention.
    """
    self._check(images)
    check_inserts(self.inserts, places((self.depth,)))
    x, grid = self._embed(images)
    rates = drop_path_rates(self.drop_path, (self.depth,))[0]
    maps: Maps = {}
    for index in range(self.depth):
      path = f'stage_0/block_{index}'
      block = ViTBlock(
        self.num_heads,
        grid,
        self.class_token,
        self.attention,
        self.mlp_ratio,
        self.activation,
        self.init_values,
        rates[index],
        self.initialization,
        self.dtype,
        name=path.replace('/', '_'),
      )
      attended = run(block, x, train=train, remat=self.remat)
      x, inserted = self._insert(path, attended.features, grid, train)
      maps |= under(path, attended.maps) | inserted
    x, inserted = self._insert('stage_0', x, grid, train)
    if self.final_norm:
      x = layer_norm(name='norm', dtype=self.dtype)(x)
    token, features = self._split(x, grid)
    return Attended(
      features, maps | inserted, (features,), token[:, 0] if self.class_token else None
    )

  def _check(self, images: jax.Array) -> None:
    chex.assert_rank(images, 4)
    _, height, width, _ = images.shape
    if height % self.patch_size or width % self.patch_size or not height or not width:
      raise ValueError(f'{self.patch_size=} must divide the images: {height}x{width}')
    if self.class_token and self.attention != 'self':
      raise ValueError('a class token needs self-attention: set class_token=False to have another')

  def _embed(self, images: jax.Array) -> tuple[jax.Array, Grid]:
    """[B, T, C]: the class token and the projected patches with their positions; (H, W)."""
    patches = conv(
      self.width,
      (self.patch_size, self.patch_size),
      inputs=images.shape[-1],
      name='embedding',
      strides=self.patch_size,
      padding=0,
      initialization='torch' if self.initialization == 'paper' else self.initialization,
      dtype=self.dtype,
    )(images)
    batch, height, width, channels = patches.shape
    x = (patches + self._positions((height, width))[None]).astype(patches.dtype)
    x = reshape(x, batch, height * width, channels)
    if self.class_token:
      token = self.param('class_token', nn.initializers.normal(1e-6), (channels,), jnp.float32)
      if self.class_position:
        token = token + self.param(
          'class_position', nn.initializers.normal(0.02), (channels,), jnp.float32
        )
      token = for_each_image(token[None], x).astype(x.dtype)
      x = jnp.concatenate([token, x], axis=1)
    return x, (height, width)

  def _positions(self, grid: Grid) -> jax.Array:
    """[H, W, C]."""
    if self.has_variable('params', 'positions'):
      table = self.get_variable('params', 'positions')  # may have been made at another grid
    else:
      table = self.param(
        'positions', nn.initializers.normal(0.02), (*grid, self.width), jnp.float32
      )
    return resize_positions(table, grid)

  def _split(self, x: jax.Array, grid: Grid) -> tuple[jax.Array, jax.Array]:
    """[B, T, C] -> the class token [B, 1, C] (or nothing, [B, 0, C]) and the grid [B, H, W, C]."""
    start = int(self.class_token)
    return x[:, :start], reshape(x[:, start:], x.shape[0], *grid, x.shape[-1])

  def _insert(self, path: str, x: jax.Array, grid: Grid, train: bool) -> tuple[jax.Array, Maps]:
    token, plane = self._split(x, grid)
    after, maps = insert(self, self.inserts, path, plane, train=train)
    if after.shape != plane.shape:
      raise ValueError(f'what is inserted at {path!r} made {after.shape} of {plane.shape}')
    return jnp.concatenate([token, reshape(after, x.shape[0], -1, x.shape[-1])], axis=1), maps

  @property
  def timm_names(self) -> Layouts:
    """How timm calls and stores every layer."""
    mixing = TokenAttention if self.attention == 'self' else self.attention and self.attention()
    block = {'norm_1': Norm('norm2'), 'expand': Linear('mlp.fc1'), 'reduce': Linear('mlp.fc2')}
    if mixing is not None:
      block |= {'norm_0': Norm('norm1')}
      block |= prefixed(getattr(mixing, 'timm_names', {}), path='attention/', name='attn.')
    if self.init_values is not None:
      block |= {'scale_0': Array('ls1.gamma'), 'scale_1': Array('ls2.gamma')}
    names = {'embedding': Conv('patch_embed.proj')} | self._positions_in('pos_embed')
    names |= {'class_token': Positions('cls_token')} if self.class_token else {}
    names |= {'norm': Norm('norm')} if self.final_norm else {}
    for index in range(self.depth):
      names |= prefixed(block, path=f'stage_0_block_{index}/', name=f'blocks.{index}.')
    return names

  @property
  def timm_head(self) -> Layouts:
    """How timm calls the linear layer, and the norm that comes after the pooling if not before."""
    return {'logits': Linear('head')} | ({} if self.final_norm else {'norm': Norm('fc_norm')})

  @property
  def big_vision_names(self) -> Layouts:
    """Names in the ``.npz`` files of arXiv 2010.11929 and of 2106.10270 (AugReg).

    Prefixes of whole files ('opt/target/', 'params/', 'params/img/') are left off, here and in the
    properties below.
    """
    positions = self._positions_in('Transformer/posembed_input/pos_embedding')
    return self._big_vision(_OLDER) | positions

  @property
  def big_vision_loop_names(self) -> Layouts:
    """Names in big_vision's files since 2022; ``class_position`` is none of them."""
    return self._big_vision(_NEWER) | {'positions': Positions('pos_embedding')}

  @property
  def big_vision_scan_names(self) -> Layouts:
    """The same where all blocks are stacked along the first axis, as a scan over them has it."""
    return self._big_vision(_NEWER, stacked=True) | {'positions': Positions('pos_embedding')}

  @property
  def big_vision_head(self) -> Layouts:
    """How all these files call the linear layer."""
    return {'logits': Linen('head')}

  def _positions_in(self, name: str) -> dict[str, Linear]:
    """The positions of class token and grid in one tensor."""
    if not (self.class_token and self.class_position):
      return {'positions': Positions(name)}
    token, grid = Positions(name, 0, 2, stop=1), Positions(name, 1, 2, start=1)
    return {'class_position': token, 'positions': grid}

  def _big_vision(self, layers: tuple[str, str, str], *, stacked: bool = False) -> dict:
    attention, norm, mlp = layers
    block = {
      'norm_0': Linen('LayerNorm_0'),
      'norm_1': Linen(norm),
      'expand': Linen(f'{mlp}/Dense_0'),
      'reduce': Linen(f'{mlp}/Dense_1'),
    }
    of_heads = TokenAttention(self.num_heads, parent=None).big_vision_names
    block |= prefixed(of_heads, path='attention/', name=f'{attention}/')
    names = {'embedding': Linen('embedding')}
    names |= {'class_token': Positions('cls')} if self.class_token else {}
    names |= {'norm': Linen('Transformer/encoder_norm')} if self.final_norm else {}
    for index in range(self.depth):
      here, place = block, f'encoderblock_{index}'
      if stacked:
        place = 'encoderblock'
        stack = {'part': index, 'parts': self.depth, 'stacked': True}
        here = {key: dataclasses.replace(value, **stack) for key, value in block.items()}
      names |= prefixed(here, path=f'stage_0_block_{index}/', name=f'Transformer/{place}/')
    return names
