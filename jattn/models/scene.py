"""A small network for scenes, which shows where it looked."""

import jax.numpy as jnp

from jattn.backbones import ResNet
from jattn.models.classifier import Classifier, Head
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.ops import Init


def scene_classifier(
  num_classes: int = 10,
  *,
  attention: Part | None = None,
  pool: Part = 'weighted_average',
  depth: int = 1,
  width: int = 32,
  stem_width: int = 16,
  dropout: float = 0.0,
  initialization: Init = 'paper',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """One stage of a residual network, a mechanism, a pooling and a linear layer, for any size.

  The tutorial's order: convolutions make features, ``attention`` and ``pool`` weigh positions. The
  stem is that of He et al. 2015, arXiv 1512.03385 (7x7 with stride 2, then 3x3 max pooling with
  stride 2), so the grid is a quarter of the image's sides; with ``depth`` 1 a position sees 27x27
  pixels, which is about a digit of ``jattn.data.scenes``. 17,274 parameters for 10 classes.

  Args:
    num_classes: L.
    attention: a name of ``list_attentions()`` or that and its settings, between the features and
      the pooling; None leaves it out.
    pool: a name of ``list_poolings()`` or that and its settings.
    depth: residual blocks; each adds 16 pixels to what a position sees.
    width: channels of the features.
    stem_width: channels of the 7x7 convolution.
    dropout: probability of dropping a feature before the linear layer.
    initialization: how convolutions start, see ``ResNet``; the linear layer as PyTorch's where this
      is 'paper'.
    dtype: what is computed in; None is the input's type.
  """
  make = make_attention(attention, dtype=dtype)
  return Classifier(
    backbone=ResNet(
      (depth,), (width,), stem_width=stem_width, initialization=initialization, dtype=dtype
    ),
    attention=() if make is None else (make(),),
    pool=make_pooling(pool, dtype=dtype),
    head=Head(
      num_classes,
      dropout=dropout,
      initialization='torch' if initialization == 'paper' else initialization,
      dtype=dtype,
    ),
  )
