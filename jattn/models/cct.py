"""Compact convolutional transformers for 32x32 images."""

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from jattn.backbones import CCT
from jattn.layers import Activation
from jattn.models.classifier import Classifier, Head
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.ops import Init


def cct(
  num_classes: int = 10,
  *,
  depth: int = 7,
  attention: Part | None = 'self',
  pool: Part = 'seq_pool',
  width: int = 256,
  num_heads: int = 4,
  mlp_ratio: float = 2.0,
  stem: Sequence[int] = (),
  positions: Literal['learned', 'sinusoidal', 'none'] = 'learned',
  attention_dropout: float = 0.1,
  activation: Activation = 'gelu',
  dropout: float = 0.0,
  drop_path: float = 0.1,
  remat: bool = False,
  initialization: Init = 'paper',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """A compact convolutional transformer for 32x32 images (any size works), as its authors' code.

  Hassani et al. 2021, arXiv 2104.05704. timm has none.

  ============  ======  =====  =====  ============  ========================  ==========
  name          blocks  width  heads  convolutions  parameters at 10 classes  products
  ============  ======  =====  =====  ============  ========================  ==========
  cct_2_3x2_32  2       128    2      2             283,723                   35.3 M
  cct_7_3x1_32  7       256    4      1             3,760,139                 1.182 G
  ============  ======  =====  =====  ============  ========================  ==========

  The paper's 0.033 G and 0.947 G leave out the two products of the self-attention with its maps.

  Args:
    num_classes: L.
    depth, width, num_heads, mlp_ratio, stem, positions, attention_dropout, activation, drop_path,
      remat, dtype: as for ``CCT``.
    attention: what mixes the tokens of each block: a name of ``list_attentions()`` or that and its
      settings, of a mechanism that keeps the shape. 'self' is the model's own; None leaves the
      branch out, the control arm.
    pool: a name of ``list_poolings()`` or that and its settings; the paper's is 'seq_pool'.
    dropout: probability of dropping a feature before the linear layer.
    initialization: how the layers start; 'paper' is as the authors start them, but for the score of
      the pooling.
  """
  return Classifier(
    backbone=CCT(
      depth,
      width,
      num_heads,
      mlp_ratio,
      stem,
      positions,
      attention if attention == 'self' else make_attention(attention, dtype=dtype),
      attention_dropout,
      activation,
      drop_path,
      initialization,
      dtype,
      remat=remat,
    ),
    pool=make_pooling(pool, dtype=dtype),
    head=Head(
      num_classes,
      dropout=dropout,
      initialization=initialization,
      deviation=0.02 if initialization == 'paper' else None,
      dtype=dtype,
    ),
  )
