"""The tutorial's classifier and its twins for comparison."""

from collections.abc import Sequence

import jax.numpy as jnp

from jattn.attention import SelfAttention
from jattn.backbones import ConvStack
from jattn.models.classifier import Classifier, Head
from jattn.ops import Init
from jattn.pooling import Flatten, WeightedAverage


def seed_classifier(
  num_classes: int = 10,
  *,
  image_size: int = 32,
  widths: Sequence[int] = (64, 128, 256),
  hidden: int = 512,
  dropout: float = 0.5,
  initialization: Init = 'torch',
  mimetic: float | None = 100.0,
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """The tutorial's classifier: three stages, one-head self-attention, flatten, two linear layers.

  d_k = widths[-1] / 8, d_v = widths[-1], no output projection, no residual. 2,555,850 parameters
  for 10 classes of 32x32x3 images. Layers start as PyTorch's, since the tutorial is written in
  PyTorch; but query and key start as each other (``SelfAttention.mimetic``), as apart they would
  start with even weights, behind which all positions are the same. ``mimetic=None`` starts them as
  PyTorch does.
  """
  attention = SelfAttention(
    qk_features=widths[-1] // 8,
    v_features=widths[-1],
    mimetic=mimetic,
    initialization=initialization,
    dtype=dtype,
  )
  return Classifier(
    backbone=ConvStack(widths, initialization, dtype),
    attention=(attention,),
    pool=Flatten(),
    head=Head(num_classes, (hidden,), dropout, initialization, dtype),
    image_size=image_size,
  )


def seed_classifier_no_attention(
  num_classes: int = 10,
  *,
  image_size: int = 32,
  widths: Sequence[int] = (64, 128, 256),
  hidden: int = 512,
  dropout: float = 0.5,
  initialization: Init = 'torch',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """The control: the tutorial's classifier with the attention taken out. 2,473,610 parameters."""
  return Classifier(
    backbone=ConvStack(widths, initialization, dtype),
    pool=Flatten(),
    head=Head(num_classes, (hidden,), dropout, initialization, dtype),
    image_size=image_size,
  )


def seed_classifier_weighted_average(
  num_classes: int = 10,
  *,
  widths: Sequence[int] = (64, 128, 256),
  hidden: int = 512,
  dropout: float = 0.5,
  initialization: Init = 'torch',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """The tutorial's features under weighted-average attention (gated score), any image size."""
  return Classifier(
    backbone=ConvStack(widths, initialization, dtype),
    pool=WeightedAverage(score='gated', dtype=dtype),
    head=Head(num_classes, (hidden,), dropout, initialization, dtype),
  )
