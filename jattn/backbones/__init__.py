"""Backbones: images [B, H, W, C] -> Attended, with the maps of attention inside; one file a family."""

from jattn.backbones.conv_stack import ConvStack

__all__ = ['ConvStack']
