"""ConvNeXt."""

from collections.abc import Sequence

import jax.numpy as jnp

from jattn.backbones import ConvNeXt
from jattn.layers import Activation
from jattn.models.classifier import Classifier, Head
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.ops import Init


def convnext(
  num_classes: int = 1000,
  *,
  depths: Sequence[int] = (2, 2, 6, 2),
  widths: Sequence[int] = (40, 80, 160, 320),
  attention: Part | None = None,
  pool: Part = 'average',
  kernel_size: int = 7,
  init_values: float | None = 1e-6,
  activation: Activation = 'gelu',
  dropout: float = 0.0,
  drop_path: float = 0.0,
  remat: bool = False,
  initialization: Init = 'paper',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """A ConvNeXt of the first version, Liu et al. 2022, arXiv 2201.03545, for images of any size.

  Atto and pico are timm's small ones, which the paper has not (widths from 40 and from 64, two,
  two, six and two blocks): 3,695,520 and 9,045,672 parameters for 1,000 classes, 0.55 and 1.37
  billion multiply-accumulates at 224x224. timm computes their MLPs as 1x1 convolutions, which is
  the same. Pooling, layer norm and linear layer follow the last stage.

  Args:
    num_classes: L.
    attention: a name of ``list_attentions()`` or that and its settings, applied to each block's
      branch before its factor; None, as in the paper, is none.
    pool: a name of ``list_poolings()`` or that and its settings.
    depths, widths, kernel_size, init_values, activation, drop_path, remat, initialization, dtype:
      as for ``ConvNeXt``.
    dropout: probability of dropping a feature before the linear layer.
  """
  return Classifier(
    backbone=ConvNeXt(
      depths,
      widths,
      make_attention(attention, dtype=dtype),
      kernel_size=kernel_size,
      init_values=init_values,
      activation=activation,
      initialization=initialization,
      dtype=dtype,
      drop_path=drop_path,
      remat=remat,
    ),
    pool=make_pooling(pool, dtype=dtype),
    head=Head(
      num_classes,
      dropout=dropout,
      initialization=initialization,
      dtype=dtype,
      norm=True,
      deviation=0.02 if initialization == 'paper' else None,
    ),
  )
