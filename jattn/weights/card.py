"""The model card: what a folder of weights is and how to load it, for people and for the hub."""

from collections.abc import Mapping
from typing import Any


def write(
  name: str,
  *,
  library: str,
  facts: Mapping[str, int],
  preprocessing: Mapping[str, Any],
  settings: Mapping[str, Any],
  description: str,
  license: str | None,
  known: bool,
) -> str:
  """Markdown under a front matter of YAML, as the hub reads it.

  Args:
    name: of the model.
    library: 'timm' or 'jattn', whose names the tensors have.
    facts: num_classes, num_features, image_size, channels, parameters.
    preprocessing: of the images, in timm's words.
    settings: of ``jattn.create_model``.
    description: a paragraph, or nothing.
    license: its identifier on the hub, or None.
    known: whether ``name`` is that of an architecture.
  """
  side = facts['image_size']
  rows = {
    'parameters': f'{facts["parameters"]:,}',
    'classes': f'{facts["num_classes"]:,}',
    'features before the last layer': f'{facts["num_features"]:,}',
    'images': f'{side}x{side} pixels, {facts["channels"]} channels',
    **{f'images, {key}': value for key, value in preprocessing.items()},
    'names of the tensors': "timm's" if library == 'timm' else "jattn's own paths",
  }
  parts = [
    _front_matter(library, license),
    f'# {name}',
    description.strip(),
    'An image classifier written by jattn, attention for image classification in JAX.',
    '\n'.join(['| | |', '|---|---|', *(f'| {key} | {value} |' for key, value in rows.items())]),
    '## Loading it in jattn',
    _code(_in_jattn(name if known else 'NAME', facts['num_classes'], settings)),
  ]
  if library == 'timm':
    parts += ['## Loading it in timm', _code(_IN_TIMM)]
  return '\n\n'.join(part for part in parts if part) + '\n'


_IN_TIMM = """\
import timm

model = timm.create_model('local-dir:FOLDER', pretrained=True).eval()"""


def _in_jattn(name: str, num_classes: int, settings: Mapping[str, Any]) -> str:
  more = ''.join(f', {key}={value!r}' for key, value in settings.items())
  return f"""\
import jattn

model = jattn.create_model({name!r}, num_classes={num_classes}{more})
variables = jattn.load_weights('FOLDER', model)"""


def _front_matter(library: str, license: str | None) -> str:
  tags = ['image-classification', 'jattn', *(['timm'] if library == 'timm' else [])]
  lines = ['---', 'tags:', *(f'- {tag}' for tag in tags)]
  lines += ['pipeline_tag: image-classification', f'library_name: {library}']
  lines += [f'license: {license}'] if license else []
  return '\n'.join([*lines, '---'])


def _code(text: str) -> str:
  return f'```python\n{text}\n```'
