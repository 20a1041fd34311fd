"""Residual networks for 32x32 images."""

from collections.abc import Sequence

import jax.numpy as jnp

from jattn.backbones import ResNetCifar
from jattn.backbones.resnet_blocks import Shortcut
from jattn.layers import Norm
from jattn.models.classifier import Classifier, Head
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.ops import Init


def resnet_cifar(
  num_classes: int = 10,
  *,
  depth: int = 20,
  attention: Part | None = None,
  pool: Part = 'average',
  widths: Sequence[int] = (16, 32, 64),
  norm: Norm = 'batch',
  shortcut: Shortcut = 'pad',
  zero_last: bool = False,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  remat: bool = False,
  initialization: Init = 'paper',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """A residual network for 32x32 images (any size works) with attention in every block.

  Args:
    num_classes: L.
    depth: 6n + 2.
    attention: a name of ``list_attentions()`` or that and its settings; None is the control arm.
    pool: a name of ``list_poolings()`` or that and its settings.
    widths, norm, shortcut, zero_last, drop_path, remat, initialization, dtype: as for
      ``ResNetCifar``.
    dropout: probability of dropping a feature before the linear layer.
  """
  return Classifier(
    backbone=ResNetCifar(
      depth,
      widths,
      make_attention(attention, dtype=dtype),
      norm,
      shortcut,
      zero_last,
      initialization,
      dtype,
      drop_path,
      remat=remat,
    ),
    pool=make_pooling(pool, dtype=dtype),
    head=Head(num_classes, dropout=dropout, dtype=dtype),
  )
