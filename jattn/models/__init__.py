"""The classifier, and the models that have names: one file for each family of them."""

import fnmatch
import functools
from collections.abc import Callable

from jattn.models import byob, resnet
from jattn.models.attach import attach_attention
from jattn.models.byob import byobnet
from jattn.models.cards import Facts, ModelCard, make_card
from jattn.models.cct import cct
from jattn.models.cifar import resnet_cifar
from jattn.models.classifier import Classifier, Head, features
from jattn.models.coatnet import coatnet
from jattn.models.convnext import convnext
from jattn.models.parts import Part, make_attention, make_pooling
from jattn.models.resnet import resnet_imagenet
from jattn.models.scene import scene_classifier
from jattn.models.seed import (
  seed_classifier,
  seed_classifier_no_attention,
  seed_classifier_weighted_average,
)
from jattn.models.vit import vit
from jattn.names import build, look_up

MODELS: dict[str, Callable[..., Classifier]] = {
  'botnet26t_256': byob.botnet26t_256,
  'cct_2_3x2_32': functools.partial(
    cct, depth=2, width=128, num_heads=2, mlp_ratio=1.0, stem=(64,)
  ),
  'cct_7_3x1_32': cct,
  'coatnet_nano_rw_224': coatnet,
  'convnext_atto': convnext,
  'convnext_pico': functools.partial(convnext, widths=(64, 128, 256, 512)),
  'ecaresnet26t': resnet.ecaresnet26t,
  'gcresnet33ts': byob.gcresnet33ts,
  'gcresnext26ts': byob.gcresnext26ts,
  'halonet26t': byob.halonet26t,
  'lambda_resnet26t': byob.lambda_resnet26t,
  'resnest14d': resnet.resnest14d,
  'resnet18': resnet.resnet18,
  'resnet20': functools.partial(resnet_cifar, depth=20),
  'resnet26': resnet.resnet26,
  'resnet26d': resnet.resnet26d,
  'resnet26t': resnet.resnet26t,
  'resnet32': functools.partial(resnet_cifar, depth=32),
  'resnet34': resnet.resnet34,
  'resnet50': resnet.resnet50,
  'resnet50d': resnet.resnet50d,
  'resnet56': functools.partial(resnet_cifar, depth=56),
  'resnext50_32x4d': resnet.resnext50_32x4d,
  'scene_classifier': scene_classifier,
  'seed_classifier': seed_classifier,
  'seed_classifier_no_attention': seed_classifier_no_attention,
  'seed_classifier_weighted_average': seed_classifier_weighted_average,
  'seresnet33ts': byob.seresnet33ts,
  'seresnet50': resnet.seresnet50,
  'skresnet18': resnet.skresnet18,
  'vit_base_patch16_224': vit,
  'vit_small_patch16_224': functools.partial(vit, width=384, num_heads=6),
  'vit_tiny_patch16_224': functools.partial(vit, width=192, num_heads=3),
}

_BYOB = "in a residual network of timm's"
_CCT = "Hassani et al. 2021, arXiv 2104.05704, as the authors' code builds it"
_CONVNEXT = "Liu et al. 2022, arXiv 2201.03545, in a size of timm's"
_RESNET = 'He et al. 2015, arXiv 1512.03385, as timm builds it'
_RESNET_CIFAR = 'He et al. 2015, section 4.2, arXiv 1512.03385'
_RESNET_D = 'He et al. 2018 (ResNet-D), arXiv 1812.01187, as timm builds it'
_SEED = "the tutorial's classifier"
_VIT = 'Dosovitskiy et al. 2020, arXiv 2010.11929'
FACTS: dict[str, Facts] = {
  'botnet26t_256': Facts(256, 1000, f'Srinivas et al. 2021 (BoTNet), arXiv 2101.11605, {_BYOB}'),
  'cct_2_3x2_32': Facts(32, 10, _CCT),
  'cct_7_3x1_32': Facts(32, 10, _CCT),
  'coatnet_nano_rw_224': Facts(224, 1000, "Dai et al. 2021, arXiv 2106.04803, in a form of timm's"),
  'convnext_atto': Facts(224, 1000, _CONVNEXT),
  'convnext_pico': Facts(224, 1000, _CONVNEXT),
  'ecaresnet26t': Facts(256, 1000, "Wang et al. 2020, arXiv 1910.03151, on timm's resnet26t"),
  'gcresnet33ts': Facts(256, 1000, f'Cao et al. 2019 (GCNet), arXiv 1904.11492, {_BYOB}'),
  'gcresnext26ts': Facts(256, 1000, f'Cao et al. 2019 (GCNet), arXiv 1904.11492, {_BYOB}'),
  'halonet26t': Facts(256, 1000, f'Vaswani et al. 2021 (HaloNet), arXiv 2103.12731, {_BYOB}'),
  'lambda_resnet26t': Facts(256, 1000, f'Bello 2021 (LambdaNetworks), arXiv 2102.08602, {_BYOB}'),
  'resnest14d': Facts(224, 1000, 'Zhang et al. 2020, arXiv 2004.08955, as timm builds it'),
  'resnet18': Facts(224, 1000, _RESNET),
  'resnet20': Facts(32, 10, _RESNET_CIFAR),
  'resnet26': Facts(224, 1000, _RESNET),
  'resnet26d': Facts(224, 1000, _RESNET_D),
  'resnet26t': Facts(256, 1000, f'{_RESNET_D}, with its tiered stem'),
  'resnet32': Facts(32, 10, _RESNET_CIFAR),
  'resnet34': Facts(224, 1000, _RESNET),
  'resnet50': Facts(224, 1000, _RESNET),
  'resnet50d': Facts(224, 1000, _RESNET_D),
  'resnet56': Facts(32, 10, _RESNET_CIFAR),
  'resnext50_32x4d': Facts(224, 1000, 'Xie et al. 2016, arXiv 1611.05431, as timm builds it'),
  'scene_classifier': Facts(60, 10, 'one stage of He et al. 2015, arXiv 1512.03385'),
  'seed_classifier': Facts(32, 10, _SEED),
  'seed_classifier_no_attention': Facts(32, 10, f'{_SEED}, without attention'),
  'seed_classifier_weighted_average': Facts(32, 10, f'{_SEED}, with weighted-average attention'),
  'seresnet33ts': Facts(256, 1000, f'Hu et al. 2018, arXiv 1709.01507, {_BYOB}'),
  'seresnet50': Facts(224, 1000, 'Hu et al. 2017, arXiv 1709.01507, as timm builds it'),
  'skresnet18': Facts(224, 1000, "timm's, after Li et al. 2019, arXiv 1903.06586"),
  'vit_base_patch16_224': Facts(224, 1000, _VIT),
  'vit_small_patch16_224': Facts(224, 1000, f'{_VIT}, in the size of arXiv 2012.12877'),
  'vit_tiny_patch16_224': Facts(224, 1000, f'{_VIT}, in the size of arXiv 2012.12877'),
}


def list_models(pattern: str = '*') -> list[str]:
  """Returns the names that ``create_model`` takes and that match ``pattern``, sorted.

  >>> list_models('seed*')
  ['seed_classifier', 'seed_classifier_no_attention', 'seed_classifier_weighted_average']
  """
  return sorted(fnmatch.filter(MODELS, pattern))


def create_model(name: str, *, num_classes: int | None = None, **settings) -> Classifier:
  """Returns the model called ``name``.

  Args:
    name: of ``list_models()``.
    num_classes: L; None is what the model was designed for.
    **settings: of the model: ``attention``, ``pool``, ``dtype``, ``remat``, ``drop_path``, ...

  Raises:
    ValueError: no model has that name, or it has no such setting (the message suggests the
      nearest).

  >>> create_model('seed_classifier', num_classes=10).image_size
  32
  """
  if num_classes is None:
    num_classes = look_up(name, FACTS, noun='model').num_classes
  if num_classes < 2:
    raise ValueError(f'{num_classes=} must be at least 2')
  settings = {'num_classes': num_classes, **settings}
  return build(name, MODELS, noun='model', settings=settings)


def model_card(
  name: str,
  *,
  image_size: int | None = None,
  num_classes: int | None = None,
  memory: bool = True,
  **settings,
) -> ModelCard:
  """Returns what the model called ``name`` costs and where it shows what it looked at.

  Args:
    name: of ``list_models()``.
    image_size: side of the images; None is the size the model was designed for.
    num_classes: None is what the model was designed for.
    memory: whether peak memory is wanted, for which the model is compiled: seconds for a large one.
    **settings: of the model, as ``create_model`` takes them.

  Raises:
    ValueError: as ``create_model`` does.

  >>> card = model_card('seed_classifier', memory=False)
  >>> card.parameters, card.maps
  (2555850, (('attention_0/weights', 'position', (1, 1, 16, 16)),))
  """
  facts = look_up(name, FACTS, noun='model')
  model = create_model(name, num_classes=num_classes, **settings)
  size = image_size or facts.image_size
  return make_card(name, model, facts, image_size=size, memory=memory)


__all__ = [
  'FACTS',
  'MODELS',
  'Classifier',
  'Facts',
  'Head',
  'ModelCard',
  'Part',
  'attach_attention',
  'byobnet',
  'cct',
  'coatnet',
  'convnext',
  'create_model',
  'features',
  'list_models',
  'make_attention',
  'make_pooling',
  'model_card',
  'resnet_cifar',
  'resnet_imagenet',
  'seed_classifier',
  'seed_classifier_no_attention',
  'seed_classifier_weighted_average',
  'vit',
]
