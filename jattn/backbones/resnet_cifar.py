"""Residual networks for 32x32 images, with a slot for attention in every block."""

from collections.abc import Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.backbones.resnet_blocks import ResidualBlock, Shortcut
from jattn.backbones.slots import Inserts, MakeAttention, Maps, check_inserts, places, run_stage
from jattn.layers import Norm, conv, drop_path_rates, norm
from jattn.ops import Init
from jattn.types import Attended


class ResNetCifar(nn.Module):
  """Residual network of depth 6n + 2 for small images: a 3x3 convolution and 3 stages of n blocks.

  He et al. 2015, section 4.2, arXiv 1512.03385. Depth 20, 32 and 56 are n = 3, 5 and 9; with the
  linear layer to 10 classes they have 269,722, 464,154 and 853,018 parameters.

  Maps: those of each block, under ``stage_S/block_I/attention/...``.

  Attributes:
    depth: 6n + 2, counting the convolutions of the blocks, the first one and the classifier.
    widths: channels of each stage; every stage but the first halves H and W, rounding up.
    attention: makes the mechanism of each block, or None.
    norm: 'batch' or 'group'.
    shortcut: 'pad', 'projection' or 'average', see ``ResidualBlock``.
    zero_last: whether the last norm of each block starts at zero.
    initialization: how the convolutions start.
    dtype: what is computed in; None is the input's type.
    drop_path: probability of dropping the last block's branch, rising evenly from the first's 0.
    inserts: (place, what makes the mechanism after it), see ``jattn.backbones.slots``.
    remat: whether the activations of a block are made again in the backward pass.
  """

  depth: int = 20
  widths: Sequence[int] = (16, 32, 64)
  attention: MakeAttention | None = None
  norm: Norm = 'batch'
  shortcut: Shortcut = 'pad'
  zero_last: bool = False
  initialization: Init = 'paper'
  dtype: jnp.dtype | None = None
  drop_path: float = 0.0
  inserts: Inserts = ()
  remat: bool = False

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Attended:
    """[B, H, W, 3] -> features [B, ceil(H / 4), ceil(W / 4), widths[-1]] and the blocks' maps.

    Raises:
      ValueError: the depth is not 6n + 2.
    """
    chex.assert_rank(images, 4)
    depth, rest = divmod(self.depth - 2, 2 * len(self.widths))
    if rest or depth < 1:
      raise ValueError(f'{self.depth=} must be {2 * len(self.widths)}n + 2')
    x = conv(
      self.widths[0],
      (3, 3),
      inputs=images.shape[-1],
      name='conv',
      use_bias=False,
      initialization=self.initialization,
      dtype=self.dtype,
    )(images)
    x = nn.relu(norm(self.norm, train=train, name='norm', dtype=self.dtype)(x))
    depths = (depth,) * len(self.widths)
    check_inserts(self.inserts, places(depths))
    rates = drop_path_rates(self.drop_path, depths)
    maps: Maps = {}
    stages = []
    for stage, features in enumerate(self.widths):
      blocks = (
        ResidualBlock(
          features,
          strides=2 if stage and not index else 1,
          shortcut=self.shortcut,
          attention=self.attention,
          norm=self.norm,
          zero_last=self.zero_last,
          initialization=self.initialization,
          dtype=self.dtype,
          drop_path=rates[stage][index],
          name=f'stage_{stage}_block_{index}',
        )
        for index in range(depth)
      )
      x, found = run_stage(self, stage, blocks, x, train=train)
      maps |= found
      stages.append(x)
    return Attended(x, maps, tuple(stages))
