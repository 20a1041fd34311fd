"""Backbones: images -> Attended, features and the maps of attention inside; one file a family."""

from jattn.backbones.conv_stack import ConvStack

__all__ = ['ConvStack']
