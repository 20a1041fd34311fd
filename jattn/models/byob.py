"""Residual networks with attention in the middle of their bottlenecks: timm's -T and -TS names."""

import functools
from collections.abc import Sequence

import jax.numpy as jnp

from jattn.backbones import ByobNet
from jattn.layers import Activation, Norm
from jattn.models.classifier import Classifier, Head
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.ops import Init


def byobnet(
  num_classes: int = 1000,
  *,
  blocks: Sequence[str] = ('cc', 'cc', 'ca', 'aa'),
  attention: Part | None = None,
  pool: Part = 'average',
  widths: Sequence[int] = (256, 512, 1024, 2048),
  ratio: float = 0.25,
  group_size: int | None = None,
  stem: Sequence[int] = (24, 32, 64),
  stem_pool: bool = True,
  last: int | None = None,
  norm: Norm = 'batch',
  activation: Activation = 'relu',
  zero_last: bool = True,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  remat: bool = False,
  initialization: Init = 'paper',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """A residual network with attention in its bottlenecks, for images of 256x256 or about.

  ================  ==============  ===========================  ==========  ====================
  name              attention       where                        parameters  paper
  ================  ==============  ===========================  ==========  ====================
  botnet26t_256     bottleneck      in place of the last three   12,488,672  Srinivas 2101.11605
  halonet26t        halo            3x3 convolutions             12,480,288  Vaswani 2103.12731
  lambda_resnet26t  lambda                                       10,958,272  Bello 2102.08602
  gcresnext26ts     global_context  after every 3x3 convolution  10,476,600  Cao 1904.11492
  gcresnet33ts                                                   19,880,698
  seresnet33ts      squeeze_excite                               19,779,200  Hu 1709.01507
  ================  ==============  ===========================  ==========  ====================

  The networks are timm's: none has its counterpart in a paper. Attention in place of a convolution
  takes the variant ``timm``. Where it strides, halo attention asks with every other position, and
  the others are followed by an average of 2x2. Sizes that timm refuses (a table of positions made
  at another size, a block that does not divide the grid, an odd grid to halve) are taken as the
  mechanism and ``HybridBottleneck`` say.

  Args:
    num_classes: L.
    blocks, widths, ratio, group_size, stem, stem_pool, last, norm, activation, zero_last,
      drop_path, remat, dtype: as for ``ByobNet``.
    attention: a name of ``list_attentions()`` or that and its settings, in the places of the
      model's own; it must keep the shape. None is the control arm: self-attention gives its place
      back to the 3x3 convolution, and a gate to nothing.
    pool: a name of ``list_poolings()`` or that and its settings.
    dropout: probability of dropping a feature before the linear layer.
    initialization: how the convolutions start; 'paper' is normal with variance 2 / fan_out, as timm
      starts them. The linear layer starts as Flax's (timm: normal, deviation 0.01).
  """
  return Classifier(
    backbone=ByobNet(
      blocks,
      widths,
      ratio,
      group_size,
      stem,
      stem_pool,
      last,
      make_attention(attention, dtype=dtype),
      norm,
      activation,
      zero_last,
      initialization,
      dtype,
      drop_path,
      remat=remat,
    ),
    pool=make_pooling(pool, dtype=dtype),
    head=Head(num_classes, dropout=dropout, dtype=dtype),
  )


botnet26t_256 = functools.partial(byobnet, attention={'name': 'bottleneck', 'variant': 'timm'})
halonet26t = functools.partial(
  byobnet,
  attention={'name': 'halo', 'num_heads': 8, 'block_size': 8, 'halo': 2, 'variant': 'timm'},
)
lambda_resnet26t = functools.partial(
  byobnet, attention={'name': 'lambda', 'kernel_size': 9, 'variant': 'timm'}
)
GLOBAL_CONTEXT = {
  'name': 'global_context',
  'reduction': 8,
  'variant': 'timm',
  'initialization': 'paper',
}
gcresnext26ts = functools.partial(
  byobnet,
  blocks=('gg', 'gg', 'gg', 'gg'),
  group_size=32,
  activation='silu',
  attention=GLOBAL_CONTEXT,
)
gcresnet33ts = functools.partial(
  byobnet,
  blocks=('gg', 'ggg', 'ggg', 'gg'),
  widths=(256, 512, 1536, 1536),
  stem_pool=False,
  last=1280,
  activation='silu',
  attention=GLOBAL_CONTEXT,
)
seresnet33ts = functools.partial(
  gcresnet33ts,
  attention={'name': 'squeeze_excite', 'variant': 'timm', 'initialization': 'paper'},
)
