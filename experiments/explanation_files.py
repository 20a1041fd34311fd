"""What an explanation leaves behind: a page, pictures, the raw maps and every score."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from PIL import Image

from experiments.errors import RunError
from experiments.explanations import AGAINST_BOXES, STEPS, Explanation, cheap
from experiments.map_sheets import sheet
from experiments.rundir import RunDirectory, finite
from experiments.setup import Setup
from jattn import explain
from jattn.explain import Score


def write(
  out: pathlib.Path, found: Explanation, setup: Setup, *, facts: Mapping[str, str], seed: int = 0
) -> pathlib.Path:
  """Writes report.html, overlay_METHOD.png, maps.npz and scores.json; returns the page's path.

  Args:
    out: directory, made if it is not there; older files of these names are replaced.
    found: what to write.
    setup: of the run.
    facts: what was explained, for the page and scores.json.
    seed: of the bootstrap.

  Raises:
    RunError: the directory cannot be written.
  """
  try:
    out.mkdir(parents=True, exist_ok=True)
    _write_maps(out / 'maps.npz', found)
    _write_scores(out / 'scores.json', found, facts, seed)
    _write_sheets(out, found, setup.facts.class_names)
    page = out / 'report.html'
    _write_page(page, found, setup, facts, seed)
  except OSError as error:
    raise RunError(f'{out} cannot be written: {error.strerror}') from None
  return page


def facts(
  setup: Setup, *, path: pathlib.Path, step: int, split: str, count: int, of: int, target: str
) -> dict[str, str]:
  """What was explained, in words, with the accuracy that the run has measured."""
  config = setup.config
  slots = {'model': config.model, 'attention': config.attention, 'pooling': config.pool}
  told = {name: value for name, value in slots.items() if value is not None}
  told |= {'data': setup.facts.name, 'run': str(path), 'step': f'{step:,} of {setup.steps:,}'}
  result = RunDirectory(path).read('result.json')
  if result is not None and result['steps'] == step:
    told['test accuracy'] = f'{result["test_accuracy"]:.1%} of {result["test_images"]:,} images'
  asked = 'the predicted class' if target == 'predicted' else 'the true class'
  return told | {'images': f'the first {count} of {of:,} ({split})', 'asked about': asked}


def texts(found: Explanation, names: tuple[str, ...]) -> list[str]:
  """A line for each image: what it is, and what it was taken for."""
  pairs = zip(found.sample.labels, found.predicted, strict=True)
  return [names[a] if a == b else f'{names[a]} taken for {names[b]}' for a, b in pairs]


def _write_maps(path: pathlib.Path, found: Explanation) -> None:
  sample = found.sample
  arrays = dict(found.maps) | {
    'images': sample.images,
    'labels': sample.labels.astype(np.int32),
    'predicted': found.predicted,
    'targets': found.targets,
  }
  if sample.truth is not None:
    arrays |= {'masks': np.asarray(sample.truth.masks), 'boxes': np.asarray(sample.truth.boxes)}
  partial = path.with_name(f'.{path.name}.partial')
  with open(partial, 'wb') as file:
    np.savez_compressed(file, **arrays)
  os.replace(partial, path)


def _write_scores(
  path: pathlib.Path, found: Explanation, facts: Mapping[str, str], seed: int
) -> None:
  key = jax.random.key(seed)

  def told(scores: Mapping[str, Score]) -> dict[str, Any]:
    return {name: _json(key, score) for name, score in scores.items()}

  values = {
    'facts': dict(facts),
    'methods': {method: told(scores) for method, scores in found.scores.items()},
    'degenerate': {m: explain.degenerate(a).tolist() for m, a in found.maps.items()},
    'skipped': dict(found.skipped),
    'attention_faithfulness': told(found.faithfulness),
    'labels': found.sample.labels.tolist(),
    'predicted': found.predicted.tolist(),
    'probability_of_the_true_class': found.probabilities.tolist(),
  }
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(json.dumps(finite(values), indent=2, allow_nan=False) + '\n')
  os.replace(partial, path)


def _json(key: jax.Array, score: Score) -> dict[str, Any]:
  summary = explain.summarise(key, score)
  values, chances, valid = (
    np.asarray(a).tolist() for a in (score.value, score.chance, score.valid)
  )
  return summary._asdict() | {
    'values': [v if good else None for v, good in zip(values, valid, strict=True)],
    'chances': [v if good else None for v, good in zip(chances, valid, strict=True)],
  }


def _write_sheets(out: pathlib.Path, found: Explanation, names: tuple[str, ...]) -> None:
  masks = None if found.sample.truth is None else np.asarray(found.sample.truth.masks)
  lines = texts(found, names)
  for method, maps in found.maps.items():
    drawn = sheet(found.sample.images, maps, lines, masks=masks)
    Image.fromarray(drawn).save(out / f'overlay_{method}.png')


def _write_page(
  path: pathlib.Path, found: Explanation, setup: Setup, facts: Mapping[str, str], seed: int
) -> None:
  truth = found.sample.truth
  faithful = found.faithfulness.items()
  explain.write_report(
    path,
    found.sample.images,
    found.maps,
    scores=found.scores,
    labels=found.sample.labels,
    predicted=found.predicted,
    probabilities=found.probabilities,
    class_names=setup.facts.class_names,
    masks=None if truth is None else truth.masks,
    boxes=None if truth is None else truth.boxes,
    heads=found.heads,
    of_the_model={name: {'attention faithfulness': score} for name, score in faithful},
    descriptions={method: describe(method) for method in found.maps},
    title=f'Where does {setup.config.model} look?',
    facts=facts,
    notes=_notes(found),
    key=jax.random.key(seed),
  )


def describe(method: str) -> str:
  """The first line of a method's docstring, without its shapes.

  >>> describe('saliency')
  'max_c |dS/dx_c|'
  """
  first = explain.METHODS[method].__doc__.partition('\n')[0]
  return re.split(r'[:,] \[B', first)[0].replace('``', '').rstrip('.')


def _notes(found: Explanation) -> list[str]:
  notes = []
  if found.sample.truth is not None:
    notes.append(
      f'{", ".join(AGAINST_BOXES)} hold each map against the boxes of the objects, filled; the '
      'outline that is drawn is their ink.'
    )
  notes.append(
    f'deletion and insertion: pixels go or come in the order of the map in {STEPS} steps, and the '
    'number is the area under the probability of the class that is asked about. A pixel that is '
    'gone has the mean colour of the training images.'
  )
  used = cheap(found.sample.images.shape[1:3])
  notes += [
    f'{method}: {", ".join(f"{name} {value}" for name, value in used[method].items())}.'
    for method in found.maps
    if method in used
  ]
  controls = [method for method in found.maps if method in explain.CONTROLS]
  if controls:
    notes.append(f'{" and ".join(controls)}: controls, which know nothing of the network.')
  if found.faithfulness:
    notes.append(
      "attention faithfulness: rank correlation, over the cells of a map of the network's own, of "
      'the attention a cell receives and of how much the logit drops when the cell is covered.'
    )
  notes += [f'{method} is left out: {why}.' for method, why in found.skipped.items()]
  return notes
