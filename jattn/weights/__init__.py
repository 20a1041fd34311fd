"""Weights in and out: under timm's names, as files that other tools read."""

from jattn.weights.naming import from_timm, to_timm

__all__ = ['from_timm', 'to_timm']
