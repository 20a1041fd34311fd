"""The pages of ``does_it_look``, made of its lines and maps alone."""

import json
import math
import pathlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.collect import T95
from experiments.does_it_look import ARMS, STATES
from experiments.errors import RunError
from jattn import explain

SCORES = {
  'pointing_game': 'largest value inside the box, 0..1',
  'energy_lift': 'share of the map inside the box over the share of the area, 1 is chance',
  'auroc': 'a pixel of ink above one that is not, 0..1, 0.5 is chance',
  'auroc_of_box': 'the same for the box',
  'faithfulness': 'rank correlation with what covering cells does to the logit, -1..1, 0 chance',
}
# Aims for the own map of a pooling that learns to weigh.
AIMS = {60: {'pointing_game': 0.95, 'energy_lift': 3.0, 'auroc': 0.95}}
AIMS[100] = AIMS[60] | {'energy_lift': 8.0}
POOLINGS = ('weighted_average', 'sim_pool', 'class_attention', 'attention_pool_2d')
# Columns of the page of pictures.
COLUMNS = (
  *((arm, 'trained', 'attention') for arm in ARMS if arm != 'average'),
  ('weighted_average', 'untrained', 'attention'),
  ('weighted_average', 'shuffled', 'attention'),
  ('self_attention', 'trained', 'rollout'),
  ('average', 'trained', 'grad_cam'),
  ('weighted_average', 'trained', 'grad_cam'),
  ('weighted_average', 'trained', 'integrated_gradients'),
  ('weighted_average', 'trained', 'occlusion'),
)
SHOWN = 12

Line = Mapping[str, Any]


def write_pages(found: pathlib.Path, to: pathlib.Path) -> None:
  """Writes does_it_look.jsonl, does_it_look.md, and a page of pictures for each size.

  Raises:
    RunError: the folder holds no lines.
  """
  texts = (text for path in sorted(found.glob('*.jsonl')) for text in path.open())
  lines = list({line['id']: line for line in map(json.loads, texts)}.values())
  if not lines:
    raise RunError(f'{found} holds no lines of does_it_look; run it without --page first')
  to.mkdir(parents=True, exist_ok=True)
  (to / 'does_it_look.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  (to / 'does_it_look.md').write_text('\n'.join(page(lines)) + '\n')
  for size in sizes(lines):
    draw(found, size, to / f'does_it_look_{size}.html')


def page(lines: Sequence[Line]) -> Iterable[str]:
  """The tables."""
  line = lines[-1]
  yield '# Does attention look at the object?'
  yield ''
  yield (
    'A digit lies among clutter, and which pixels are its own is known. `python -m '
    'experiments.does_it_look --out runs/look`, then `--page experiments/results`; what was done '
    "is in the script's first lines, every number in `does_it_look.jsonl`, and pictures in "
    '`does_it_look_60.html` and `does_it_look_100.html`.'
  )
  yield ''
  yield (
    f'{line["device"]} ({line["processor"]}), jax {line["versions"]["jax"]}, {line["date"]}. Means '
    'over seeds of means over scenes, and half the width of the 95% interval over seeds '
    '(Student); nothing was chosen by these scores.'
  )
  yield ''
  yield from (f'- `{name}`: {text}.' for name, text in SCORES.items())
  for size in sizes(lines):
    yield from _size(size, [line for line in lines if line['size'] == size])


def sizes(lines: Sequence[Line]) -> list[int]:
  return sorted({line['size'] for line in lines})


def _size(size: int, lines: Sequence[Line]) -> Iterable[str]:
  controls = next((line for line in lines if line['arm'] == 'controls'), None)
  networks = [line for line in lines if line['arm'] != 'controls']
  arms = [arm for arm in ARMS if any(line['arm'] == arm for line in networks)]
  seeds = len({line['seed'] for line in networks})
  yield f'\n## {size}x{size}, {lines[-1]["images"]} scenes, {seeds} seeds'
  yield '\n### What a network says of itself\n'
  if controls is not None:
    chance = ', '.join(f'{name} {controls["chance"][name]:.3f}' for name in SCORES)
    yield f'Chance: {chance}.\n'
  yield '| arm | state | steps | accuracy | ' + ' | '.join(SCORES) + ' |'
  yield '|---|---|--:|--:|' + '--:|' * len(SCORES)
  for arm in arms:
    for state in STATES:
      chosen = _of(networks, arm, state)
      if not chosen:
        continue
      accuracy = _interval([line['test_accuracy'] for line in chosen])
      cells = [_cell(chosen, 'attention', score) for score in SCORES]
      yield f'| {arm} | {state} | {chosen[0]["steps"]} | {accuracy} | ' + ' | '.join(cells) + ' |'
  yield '\n### Aims\n'
  yield from _aims(size, networks)
  for score, text in SCORES.items():
    yield f'\n### {score}, trained networks: {text}\n'
    yield from _methods(score, arms, networks, controls)
  yield '\n### class_sensitivity, trained networks: 1 is a map that does not ask for the class\n'
  yield from _methods('class_sensitivity', arms, networks, None)


def _methods(
  score: str, arms: Sequence[str], networks: Sequence[Line], controls: Line | None
) -> Iterable[str]:
  """A row for each method: `-` where a network cannot serve it, (no) where chance is not beaten."""
  chance = None if controls is None else controls['chance'][score]
  methods = dict.fromkeys(m for line in networks for m in line['methods'])
  yield '| method | ' + ' | '.join(arms) + ' |'
  yield '|---|' + '--:|' * len(arms)
  for method in methods:
    cells = (_cell(_of(networks, arm, 'trained'), method, score, chance) for arm in arms)
    yield f'| {method} | ' + ' | '.join(cells) + ' |'
  if controls is None or score not in next(iter(controls['methods'].values())):
    return
  for name, scores in controls['methods'].items():
    yield f'| *{name}* (control) | ' + ' | '.join([f'{scores[score]:.3f}'] * len(arms)) + ' |'


def _aims(size: int, networks: Sequence[Line]) -> Iterable[str]:
  for arm in POOLINGS:
    chosen = _of(networks, arm, 'trained')
    for score, aim in AIMS[size].items():
      values = _values(chosen, 'attention', score)
      if values:
        met = 'met' if statistics.fmean(values) >= aim else 'NOT met'
        yield f"- {arm}'s own map, {score} at least {aim}: {_interval(values)}, {met}."


def _of(lines: Sequence[Line], arm: str, state: str) -> list[Line]:
  return [line for line in lines if (line['arm'], line['state']) == (arm, state)]


def _values(lines: Sequence[Line], method: str, score: str) -> list[float]:
  found = (line['methods'].get(method, {}).get(score) for line in lines)
  return [value for value in found if value is not None]


def _cell(lines: Sequence[Line], method: str, score: str, chance: float | None = None) -> str:
  values = _values(lines, method, score)
  if not values:
    return '-'
  beaten = chance is None or statistics.fmean(values) - _half(values) > chance
  return _interval(values) + ('' if beaten else ' (no)')


def _half(values: Sequence[float]) -> float:
  if len(values) < 2:
    return 0.0
  return T95[len(values) - 2] * statistics.stdev(values) / math.sqrt(len(values))


def _interval(values: Sequence[float]) -> str:
  mean = f'{statistics.fmean(values):.3f}'
  return f'{mean} ± {_half(values):.3f}' if len(values) > 1 else mean


def draw(found: pathlib.Path, size: int, path: pathlib.Path) -> None:
  """A page of pictures of the first scenes under seed 0; nothing where there are no maps."""
  maps, scores, first = {}, {}, None
  for arm, state, method in COLUMNS:
    file = found / f'{size}-{arm}-{state}.npz'
    if not file.exists():
      continue
    with np.load(file) as held:
      kept = {name: held[name][:SHOWN] for name in held.files}
    if f'map_{method}' not in kept:
      continue
    if first is None and state == 'trained':
      first = kept
    name = f'{arm}: {method}' + ('' if state == 'trained' else f' ({state})')
    maps[name] = np.asarray(kept[f'map_{method}'], np.float32)
    boxes = _filled(kept['boxes'], size)
    scores[name] = {
      'pointing_game': explain.pointing_game(maps[name], boxes),
      'energy_lift': explain.energy_lift(maps[name], boxes),
      'auroc': explain.auroc(maps[name], kept['masks']),
    }
  if first is None:
    return
  labels = first['labels']
  explain.write_report(
    path,
    first['images'],
    maps,
    scores=scores,
    labels=labels,
    predicted=first['probabilities'].argmax(axis=1),
    probabilities=first['probabilities'][np.arange(len(labels)), labels],
    masks=first['masks'],
    boxes=first['boxes'],
    title=f'Does attention look at the object? {size}x{size}',
    facts={
      'scenes': f'a digit among clutter, {size}x{size}, the first {len(labels)} of the test split',
      'networks': "seed 0 of experiments.does_it_look; predictions are the first column's",
      'class asked about': 'the true one',
    },
    notes=['The dashed box is what pointing and energy are scored against, the line is the ink.'],
  )


def _filled(boxes: np.ndarray, size: int) -> np.ndarray:
  filled = np.zeros((len(boxes), size, size), bool)
  for one, own in zip(filled, boxes, strict=True):
    for top, left, bottom, right in own:
      one[top:bottom, left:right] = True
  return filled
