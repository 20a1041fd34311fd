"""Backbones: images -> Attended, features and the maps of attention inside; one file a family."""

from jattn.backbones.byob import ByobNet
from jattn.backbones.byob_blocks import HybridBottleneck
from jattn.backbones.cct import CCT
from jattn.backbones.coatnet import CoAtNet
from jattn.backbones.conv_stack import ConvStack
from jattn.backbones.convnext import ConvNeXt, ConvNeXtBlock
from jattn.backbones.resnet import ResNet
from jattn.backbones.resnet_blocks import ResidualBlock
from jattn.backbones.resnet_cifar import ResNetCifar
from jattn.backbones.vit import ViT
from jattn.backbones.vit_block import ViTBlock

__all__ = [
  'CCT',
  'ByobNet',
  'CoAtNet',
  'ConvNeXt',
  'ConvNeXtBlock',
  'ConvStack',
  'HybridBottleneck',
  'ResNet',
  'ResNetCifar',
  'ResidualBlock',
  'ViT',
  'ViTBlock',
]
