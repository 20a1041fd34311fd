"""CoAtNet."""

from collections.abc import Sequence

import jax.numpy as jnp

from jattn.backbones import CoAtNet
from jattn.layers import Activation, Norm
from jattn.models.classifier import Classifier, Head
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.ops import Init

GATE: Part = {
  'name': 'squeeze_excite',
  'reduction': 4,
  'activation': 'silu',
  'initialization': 'paper',
}


def coatnet(
  num_classes: int = 1000,
  *,
  depths: Sequence[int] = (3, 4, 6, 3),
  attention: Part | None = 'self',
  gate: Part | None = GATE,
  pool: Part = 'average',
  widths: Sequence[int] = (64, 128, 256, 512),
  stem: Sequence[int] = (32, 64),
  blocks: str = 'CCTT',
  head_width: int = 32,
  norm: Norm = 'batch',
  activation: Activation = 'silu',
  dropout: float = 0.0,
  drop_path: float = 0.0,
  remat: bool = False,
  initialization: Init = 'paper',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """CoAtNet, Dai et al. 2021, arXiv 2106.04803, as timm's ``coatnet_nano_rw_224`` has it.

  The nano model is timm's own: 15,141,244 parameters at 1,000 classes and 2.383 G
  multiply-accumulates for an image of 224x224 (any size of at least 31x31 works). It differs from
  the paper in that an inverted bottleneck widens its input and not its output, averages over 2x2
  positions where the paper takes the maximum or strides, that the projection after the attention
  and not the one before it changes the width, and that SiLU stands in the convolutional stages.

  Args:
    num_classes: L.
    depths, widths, stem, blocks, head_width, norm, activation, drop_path, remat, dtype: as
      for ``CoAtNet``.
    attention: what takes the place of self-attention in the transformer stages: a name of
      ``list_attentions()`` or that and its settings, of a mechanism that keeps the shape. 'self' is
      CoAtNet's, with a bias for each relative position; None leaves the branch out, the control
      arm.
    gate: the mechanism in the blocks of the convolutional stages, likewise;
      squeeze-and-excitation is the model's, None is none.
    pool: a name of ``list_poolings()`` or that and its settings.
    dropout: probability of dropping a feature before the linear layer.
    initialization: how the layers start; 'paper' is as timm starts them, the linear layer as
      PyTorch's.
  """
  return Classifier(
    backbone=CoAtNet(
      depths,
      widths,
      stem,
      blocks,
      attention if attention == 'self' else make_attention(attention, dtype=dtype),
      make_attention(gate, dtype=dtype),
      head_width,
      norm=norm,
      activation=activation,
      drop_path=drop_path,
      initialization=initialization,
      dtype=dtype,
      remat=remat,
    ),
    pool=make_pooling(pool, dtype=dtype),
    head=Head(
      num_classes,
      dropout=dropout,
      initialization='torch' if initialization == 'paper' else initialization,
      dtype=dtype,
    ),
  )
