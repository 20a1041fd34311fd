"""Backbones: images -> Attended, features and the maps of attention inside; one file a family."""

from jattn.backbones.conv_stack import ConvStack
from jattn.backbones.resnet_cifar import BasicBlock, ResNetCifar

__all__ = ['BasicBlock', 'ConvStack', 'ResNetCifar']
