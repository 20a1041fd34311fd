"""Attention for image classification in JAX and Flax: correct, visible, measured.

``jattn.data``, ``jattn.training`` and ``jattn.weights`` (``load_weights``, ``save_weights``,
``export_model``, ``load_exported``) are imported when first touched, because they bring TFDS, Orbax
and safetensors.
"""

import importlib

from jattn import attention, backbones, models, ops, pooling, types
from jattn.attention import create_attention, list_attentions
from jattn.models import Classifier, attach_attention, create_model, list_models, model_card
from jattn.pooling import create_pooling, list_poolings
from jattn.types import Attended, AttentionMap, Batch, Pooled, Prediction

__version__ = '0.1.0'

_ON_DEMAND = ('data', 'explain', 'training', 'weights')
_OF_WEIGHTS = ('WeightsError', 'export_model', 'load_exported', 'load_weights', 'save_weights')


def __getattr__(name: str):
  if name in _ON_DEMAND:
    return importlib.import_module(f'jattn.{name}')
  if name in _OF_WEIGHTS:
    return getattr(importlib.import_module('jattn.weights'), name)
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


__all__ = [
  'Attended',
  'AttentionMap',
  'Batch',
  'Classifier',
  'Pooled',
  'Prediction',
  'attach_attention',
  'attention',
  'backbones',
  'create_attention',
  'create_model',
  'create_pooling',
  'list_attentions',
  'list_models',
  'list_poolings',
  'model_card',
  'models',
  'ops',
  'pooling',
  'types',
]
