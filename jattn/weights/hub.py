"""A folder as the Hugging Face hub keeps models: weights, config.json and a model card."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import flax.traverse_util
import numpy as np

from jattn.layouts import Conv
from jattn.pooling import Average, Max
from jattn.weights import card, safetensors
from jattn.weights.contents import WEIGHTS
from jattn.weights.errors import WeightsError
from jattn.weights.files import HEAD
from jattn.weights.naming import Naming, covers, give, own_naming, timm_naming
from jattn.weights.writing import replacing

Library = Literal['timm', 'jattn']
# What timm's pretrained_cfg says of the images, beside their size.
PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')
_POOLS = {type(None): 'token', Average: 'avg', Max: 'max'}


def save_weights(
  path: str | os.PathLike[str],
  model: nn.Module,
  variables: Mapping,
  *,
  name: str | None = None,
  library: Library | None = None,
  image_size: int | None = None,
  preprocessing: Mapping[str, Any] | None = None,
  settings: Mapping[str, Any] | None = None,
  model_args: Mapping[str, Any] | None = None,
  description: str = '',
  license: str | None = None,
  overwrite: bool = False,
) -> Path:
  """Writes a folder that timm, the hub and ``load_weights`` read, whole or not at all.

  ``model.safetensors`` holds every variable under timm's names where timm has every layer, so
  that ``timm.create_model('local-dir:FOLDER', pretrained=True)`` loads it; otherwise under ours,
  and ``config.json`` says ``"library_name": "jattn"``. ``README.md`` is the model card.

  Args:
    path: the folder; it is made where it is not there.
    model: a ``Classifier``.
    variables: its variables; they are written in the type that they have.
    name: what the model is called: timm's architecture where the names are timm's.
    library: whose names; None is timm's where they are enough.
    image_size: side of the images in pixels; None is the model's own, or 224.
    preprocessing: of the images, in timm's words: 'mean', 'std' (of values in [0, 1]),
      'interpolation', 'crop_pct', 'crop_mode'; what is left out is not recorded.
    settings: of ``jattn.create_model`` beside the name and the number of classes.
    model_args: of ``timm.create_model``, where the network is not the named one as it stands.
    description: a paragraph for the card.
    license: its identifier on the hub, such as 'apache-2.0'.
    overwrite: whether files of these names may be replaced.

  Returns:
    The folder.

  Raises:
    WeightsError: the folder holds such files and ``overwrite`` is not set, or it cannot be
      written, or timm has no such layer and ``library`` asks for timm's names.
    ValueError: a setting is not what is said above, or timm's names lack the architecture's.
  """
  leaves = flax.traverse_util.flatten_dict(dict(variables), sep='/')
  naming, library = _naming(model, leaves, library)
  _check(name, library, license, preprocessing or {})
  facts = _facts(model, leaves, image_size)
  config = {'architecture': name} if name else {}
  if library == 'jattn':
    config |= {'library_name': 'jattn', 'settings': dict(settings or {})}
  config |= {key: facts[key] for key in ('num_classes', 'num_features')}
  pool = _POOLS.get(type(getattr(model, 'pool', model)))
  config |= {'global_pool': pool} if pool else {}
  config |= {'model_args': dict(model_args)} if model_args else {}
  config['pretrained_cfg'] = _pretrained_cfg(naming, library, leaves, facts, preprocessing or {})
  folder = Path(path).expanduser()
  text = card.write(
    name or folder.name,
    library=library,
    facts=facts,
    preprocessing=preprocessing or {},
    settings=settings or {},
    description=description,
    license=license,
    known=name is not None,
  )
  try:
    written = json.dumps(config, indent=2, allow_nan=False) + '\n'
  except (TypeError, ValueError) as error:
    raise ValueError(f'settings, model_args and preprocessing must be JSON: {error}') from None
  tensors = give(naming, {path: np.asarray(leaf) for path, leaf in leaves.items()})
  if folder.exists() and not folder.is_dir():
    raise WeightsError(f'{folder}: is a file; weights are written into a folder')
  # The weights last: a folder without them is no model, whatever ended the process.
  files = [folder / file for file in ('README.md', 'config.json', WEIGHTS)]
  with replacing(files, overwrite=overwrite) as (readme, configuration, weights):
    readme.write_text(text, encoding='utf-8')
    configuration.write_text(written, encoding='utf-8')
    safetensors.write(weights, tensors, {'format': 'pt' if library == 'timm' else 'jattn'})
  return folder


def _naming(model: nn.Module, leaves: Mapping, library: Library | None) -> tuple[Naming, Library]:
  if library not in (None, 'timm', 'jattn'):
    raise ValueError(f"{library=} must be 'timm', 'jattn' or None")
  if library == 'jattn' or getattr(model, 'timm_names', None) is None:
    return own_naming(model), 'jattn'
  naming = timm_naming(model)
  if library is None and not covers(naming, leaves):
    return own_naming(model), 'jattn'
  for path in leaves:
    naming(path)
  return naming, 'timm'


def _check(
  name: str | None, library: Library, license: str | None, preprocessing: Mapping[str, Any]
) -> None:
  if name is None and library == 'timm':
    raise ValueError(
      f"{name=} must be timm's architecture, such as 'resnet50', for timm to load the file; "
      "library='jattn' writes our own names, which need none"
    )
  for what, value in (('name', name), ('license', license)):
    if value is not None and not _NAME.fullmatch(value):
      raise ValueError(f'{what}={value!r} must be letters, digits, ., _ and -')
  for key in preprocessing:
    if key not in PREPROCESSING:
      raise ValueError(f'preprocessing has {key!r}, which is none of {PREPROCESSING}')


def _facts(model: nn.Module, leaves: Mapping, image_size: int | None) -> dict[str, int]:
  kernel = leaves.get(f'{HEAD}kernel')
  if kernel is None:
    raise ValueError(f'{type(model).__name__} has no layer {HEAD!r}: it must be a Classifier')
  return {
    'num_features': int(kernel.shape[0]),
    'num_classes': int(kernel.shape[1]),
    'image_size': image_size or getattr(model, 'image_size', None) or 224,
    'channels': model.channels,
    'parameters': sum(
      int(np.prod(leaf.shape)) for path, leaf in leaves.items() if path.startswith('params/')
    ),
  }


def _pretrained_cfg(
  naming: Naming,
  library: Library,
  leaves: Mapping,
  facts: Mapping[str, int],
  preprocessing: Mapping[str, Any],
) -> dict[str, Any]:
  """What timm keeps of weights: of the images, and of the first and the last layer."""
  layouts = {path: naming(path)[0] for path in leaves}
  first = [
    layout.name
    for path, layout in layouts.items()
    if isinstance(layout, Conv)
    and path.endswith('/kernel')
    and leaves[path].shape[-2] == facts['channels']
  ]
  cfg: dict[str, Any] = {
    'custom_load': False,
    'input_size': [facts['channels'], facts['image_size'], facts['image_size']],
    # Timm then builds a model with tables for this size.
    'fixed_input_size': any(layout.resizable for layout in layouts.values()),
    **{key: preprocessing[key] for key in PREPROCESSING if key in preprocessing},
    'num_classes': facts['num_classes'],
  }
  if library == 'timm':
    cfg |= {'first_conv': first[0]} if len(first) == 1 else {}
    cfg['classifier'] = layouts[f'{HEAD}kernel'].name
  return cfg
