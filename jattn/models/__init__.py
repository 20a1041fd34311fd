"""The classifier, and the models that have names: one file for each family of them."""

import fnmatch
import functools
from collections.abc import Callable

from jattn.models.cifar import resnet_cifar
from jattn.models.classifier import Classifier, Head, features
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.models.seed import (
  seed_classifier,
  seed_classifier_no_attention,
  seed_classifier_weighted_average,
)
from jattn.names import build

MODELS: dict[str, Callable[..., Classifier]] = {
  'resnet20': functools.partial(resnet_cifar, depth=20),
  'resnet32': functools.partial(resnet_cifar, depth=32),
  'resnet56': functools.partial(resnet_cifar, depth=56),
  'seed_classifier': seed_classifier,
  'seed_classifier_no_attention': seed_classifier_no_attention,
  'seed_classifier_weighted_average': seed_classifier_weighted_average,
}


def list_models(pattern: str = '*') -> list[str]:
  """Returns the names that ``create_model`` takes and that match ``pattern``, sorted.

  >>> list_models('seed*')
  ['seed_classifier', 'seed_classifier_no_attention', 'seed_classifier_weighted_average']
  """
  return sorted(fnmatch.filter(MODELS, pattern))


def create_model(name: str, *, num_classes: int = 1000, **settings) -> Classifier:
  """Returns the model called ``name`` with ``num_classes`` outputs.

  Raises:
    ValueError: no model has that name, or it has no such setting (the message suggests the
      nearest).

  >>> create_model('seed_classifier', num_classes=10).image_size
  32
  """
  if num_classes < 2:
    raise ValueError(f'{num_classes=} must be at least 2')
  settings = {'num_classes': num_classes, **settings}
  return build(name, MODELS, noun='model', settings=settings)


__all__ = [
  'MODELS',
  'Classifier',
  'Head',
  'Part',
  'create_model',
  'features',
  'list_models',
  'make_attention',
  'make_pooling',
  'resnet_cifar',
  'seed_classifier',
  'seed_classifier_no_attention',
  'seed_classifier_weighted_average',
]
