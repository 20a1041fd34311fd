"""Weights in and out: under timm's names, as files that other tools read."""

from jattn.weights.errors import WeightsError
from jattn.weights.export import Exported, export_model, load_exported
from jattn.weights.files import load_weights
from jattn.weights.hub import save_weights
from jattn.weights.naming import from_timm, to_timm

__all__ = [
  'Exported',
  'WeightsError',
  'export_model',
  'from_timm',
  'load_exported',
  'load_weights',
  'save_weights',
  'to_timm',
]
