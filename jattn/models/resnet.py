"""Residual networks for ImageNet, and those that grew from them: the names that timm gives them."""

import functools
from collections.abc import Mapping, Sequence

import jax.numpy as jnp

from jattn.backbones import ResNet
from jattn.backbones.resnet import Stem
from jattn.backbones.resnet_blocks import Downsample, Kind, Shortcut
from jattn.layers import Activation, Norm
from jattn.models.classifier import Classifier, Head
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.ops import Init

# Mechanisms that are themselves a strided convolution, its norm and its activation.
CONVOLUTIONS = ('selective_kernel', 'split_attention')


def resnet_imagenet(
  num_classes: int = 1000,
  *,
  depths: Sequence[int] = (2, 2, 2, 2),
  block: Kind = 'basic',
  attention: Part | None = None,
  pool: Part = 'average',
  widths: Sequence[int] = (64, 128, 256, 512),
  stem: Stem = 'plain',
  stem_width: int = 64,
  cardinality: int = 1,
  base_width: int = 64,
  shortcut: Shortcut = 'projection',
  downsample: Downsample = 'convolution',
  norm: Norm = 'batch',
  activation: Activation = 'relu',
  zero_last: bool = True,
  dropout: float = 0.0,
  drop_path: float = 0.0,
  remat: bool = False,
  initialization: Init = 'paper',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """A residual network for images of 224x224 or about (any size works), as timm builds it.

  ======================  ==========================  =================  ==========
  name                    paper                       what it is         parameters
  ======================  ==========================  =================  ==========
  resnet18                He et al. 1512.03385        basic 2222         11,689,512
  resnet26                timm                        bottleneck 2222    15,995,176
  resnet26d               He et al. 1812.01187        deep, average      16,014,408
  resnet26t               timm                        tiered, average    16,011,872
  resnet34                He et al. 1512.03385        basic 3463         21,797,672
  resnet50                He et al. 1512.03385        bottleneck 3463    25,557,032
  resnet50d               He et al. 1812.01187        deep, average      25,576,264
  resnext50_32x4d         Xie et al. 1611.05431       32 groups of 4     25,028,904
  seresnet50              Hu et al. 1709.01507        squeeze_excite     28,088,024
  ecaresnet26t            Wang et al. 1910.03151      eca                16,011,916
  skresnet18              Li et al. 1903.06586        selective_kernel   11,958,056
  resnest14d              Zhang et al. 2004.08955     split_attention    10,611,688
  ======================  ==========================  =================  ==========

  Where timm differs from the papers: the 3x3 of a bottleneck strides, not its first 1x1;
  skresnet18 has no counterpart in its paper and gives each kernel half of the channels; in
  resnest14d the average that strides stands only where the stride is two.

  Args:
    num_classes: L.
    depths: blocks of each stage.
    block: 'basic' or 'bottleneck'.
    attention: a name of ``list_attentions()`` or that and its settings; None is the control arm.
      'selective_kernel' and 'split_attention' take the place of the 3x3 convolution that strides;
      any other must keep the shape and stands at the end of the branch.
    pool: a name of ``list_poolings()`` or that and its settings.
    widths, stem, stem_width, cardinality, base_width, shortcut, downsample, norm, activation,
      zero_last, drop_path, remat, dtype: as for ``ResNet``.
    dropout: probability of dropping a feature before the linear layer.
    initialization: how the layers start; 'paper' is as timm starts them: convolutions normal with
      variance 2 / fan_out, the linear layer as PyTorch's.
  """
  make = make_attention(attention, dtype=dtype)
  return Classifier(
    backbone=ResNet(
      depths,
      widths,
      block,
      stem=stem,
      stem_width=stem_width,
      cardinality=cardinality,
      base_width=base_width,
      shortcut=shortcut,
      downsample=downsample,
      attention=make,
      place='convolution' if _name(attention) in CONVOLUTIONS else 'end',
      norm=norm,
      activation=activation,
      zero_last=zero_last,
      initialization=initialization,
      dtype=dtype,
      drop_path=drop_path,
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


def _name(part: Part | None) -> str | None:
  return part['name'] if isinstance(part, Mapping) else part


resnet18 = functools.partial(resnet_imagenet, depths=(2, 2, 2, 2))
resnet34 = functools.partial(resnet_imagenet, depths=(3, 4, 6, 3))
resnet26 = functools.partial(resnet_imagenet, block='bottleneck')
resnet26d = functools.partial(resnet26, stem='deep', shortcut='average')
resnet26t = functools.partial(resnet26, stem='tiered', shortcut='average')
resnet50 = functools.partial(resnet_imagenet, depths=(3, 4, 6, 3), block='bottleneck')
resnet50d = functools.partial(resnet50, stem='deep', shortcut='average')
resnext50_32x4d = functools.partial(resnet50, cardinality=32, base_width=4)
seresnet50 = functools.partial(
  resnet50,
  attention={'name': 'squeeze_excite', 'variant': 'timm', 'initialization': 'paper'},
)
ecaresnet26t = functools.partial(resnet26t, attention={'name': 'eca', 'initialization': 'torch'})
skresnet18 = functools.partial(
  resnet18,
  attention={
    'name': 'selective_kernel',
    'variant': 'timm',
    'reduction': 8,
    'divisor': 16,
    'initialization': 'paper',
  },
  zero_last=False,
)
resnest14d = functools.partial(
  resnet26d,
  depths=(1, 1, 1, 1),
  downsample='average',
  attention={'name': 'split_attention', 'variant': 'timm', 'initialization': 'paper'},
)
