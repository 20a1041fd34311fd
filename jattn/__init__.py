"""Attention for image classification in JAX and Flax: correct, visible, measured.

All but the nouns of ``jattn.types`` is imported when first touched: ``jattn.data`` brings TFDS,
``jattn.training`` Orbax, ``jattn.weights`` safetensors, and the mechanisms and networks are many.
"""

import importlib
from typing import TYPE_CHECKING

from jattn import types
from jattn.types import Attended, AttentionMap, Batch, Pooled, Prediction

if TYPE_CHECKING:
  from jattn import attention, backbones, data, explain, models, ops, pooling, training, weights
  from jattn.attention import create_attention, list_attentions
  from jattn.models import Classifier, attach_attention, create_model, list_models, model_card
  from jattn.pooling import create_pooling, list_poolings
  from jattn.weights import WeightsError, export_model, load_exported, load_weights, save_weights

__version__ = '0.1.0'

_ROOMS = {
  'attention': ('create_attention', 'list_attentions'),
  'backbones': (),
  'cost': (),
  'data': (),
  'explain': (),
  'models': ('Classifier', 'attach_attention', 'create_model', 'list_models', 'model_card'),
  'ops': (),
  'pooling': ('create_pooling', 'list_poolings'),
  'training': (),
  'weights': ('WeightsError', 'export_model', 'load_exported', 'load_weights', 'save_weights'),
}
_ROOM_OF = {name: room for room, names in _ROOMS.items() for name in names}


def __getattr__(name: str):
  if name in _ROOMS:
    return importlib.import_module(f'jattn.{name}')
  if name in _ROOM_OF:
    found = getattr(importlib.import_module(f'jattn.{_ROOM_OF[name]}'), name)
    globals()[name] = found  # the next look-up finds it at once
    return found
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
  return sorted({*globals(), *_ROOMS, *_ROOM_OF})


__all__ = [
  'Attended',
  'AttentionMap',
  'Batch',
  'Classifier',
  'Pooled',
  'Prediction',
  'WeightsError',
  'attach_attention',
  'attention',
  'backbones',
  'create_attention',
  'create_model',
  'create_pooling',
  'data',
  'explain',
  'export_model',
  'list_attentions',
  'list_models',
  'list_poolings',
  'load_exported',
  'load_weights',
  'model_card',
  'models',
  'ops',
  'pooling',
  'save_weights',
  'training',
  'types',
  'weights',
]
