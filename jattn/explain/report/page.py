"""The page: one HTML file that opens without a network and asks nothing of one."""

import base64
import hashlib
import importlib.resources
import json
import math
import pathlib
import string
from collections.abc import Mapping, Sequence
from html import escape

import jax
import numpy as np

from jattn.explain.report import encoding
from jattn.explain.report.colours import LIMIT
from jattn.explain.report.contents import Contents, contents
from jattn.explain.report.rows import marks, rows
from jattn.explain.report.tables import table
from jattn.explain.score import Score

_BYTES = 4_700_000  # of what grows with the number of images


def write_report(
  path: str | pathlib.Path,
  images: np.ndarray,
  maps: Mapping[str, np.ndarray],
  *,
  scores: Mapping[str, Mapping[str, Score]] | None = None,
  labels: Sequence[int] | None = None,
  predicted: Sequence[int] | None = None,
  probabilities: Sequence[float] | None = None,
  class_names: Sequence[str] | None = None,
  masks: np.ndarray | None = None,
  boxes: np.ndarray | None = None,
  heads: Mapping[str, np.ndarray] | None = None,
  of_the_model: Mapping[str, Mapping[str, Score]] | None = None,
  descriptions: Mapping[str, str] | None = None,
  captions: Sequence[str] | None = None,
  title: str = 'Where does the network look?',
  facts: Mapping[str, str] | None = None,
  notes: Sequence[str] = (),
  key: jax.Array | None = None,
) -> None:
  """Writes N images by as many columns of maps as one HTML page, a picture in each cell.

  The page holds its pictures and loads nothing; it is small (64 images by 6 columns stay below
  5 MB: maps and images are reduced where they are many). Colours mean the same in every cell: the
  map divided by the mean of its magnitude. Rows are sorted by prediction or by any score, from the
  page or by its address: ``report.html#score=auroc&sort=map:grad_cam&reverse=1``.

  Args:
    path: of the file, which is replaced.
    images: [N, H, W, 3] uint8, or floating in 0..1.
    maps: [N, H, W] for each column, raw; the name of a column is any text.
    scores: for each column {score: ``Score`` of N images}.
    labels: int [N], the true classes.
    predicted: int [N].
    probabilities: [N], of the true class.
    class_names: by class; None shows numbers.
    masks: [N, H, W] bool, whose border is drawn.
    boxes: int [N, K, 4], drawn dashed: top, left, bottom, right, the last two outside.
    heads: the network's own maps to unfold, {path: [N, M, h, w]}, as ``attention_by_head`` gives
      them.
    of_the_model: scores of the network rather than of a column, {row: {score: ``Score``}}.
    descriptions: a sentence for each column.
    captions: a sentence for each image.
    title: of the page.
    facts: what was explained, {name: value}.
    notes: sentences about this page, for instance what is left out.
    key: of the bootstrap; None is ``jax.random.key(0)``.

  Raises:
    ValueError: something has another shape than the images, or names a column that does not exist.
  """
  page = contents(
    images,
    maps,
    scores=scores or {},
    heads=heads or {},
    descriptions=descriptions or {},
    labels=labels,
    predicted=predicted,
    probabilities=probabilities,
    class_names=class_names,
    masks=masks,
    boxes=boxes,
    captions=captions,
  )
  key = jax.random.key(0) if key is None else key
  first = next(iter(page.score_names), None)
  script, drawn = _part('page.js'), marks(page)
  filled = string.Template(_part('page.html')).substitute(
    title=escape(title),
    policy=_policy(script),
    style=_part('page.css'),
    script=script,
    facts=_facts(facts or {}),
    notes=''.join(f'<li>{escape(note)}</li>' for note in notes),
    limit=f'{LIMIT:g}',
    bar=_bar(),
    summary=table(
      key, page.scores, caption='Scores: mean over the images [95% bootstrap interval]', noun='map'
    ),
    of_the_model=table(key, of_the_model or {}, caption='Scores of the network', noun='its map'),
    score_options=_options(page.score_names),
    sort_options=_sort_options(page),
    switches=_switches(page),
    heads=''.join(_column_head(page, name) for name in page.columns),
    marks=drawn,
    rows=rows(page, _order(page), first, most_bytes=_BYTES - len(drawn)),
    data=_data(page),
  )
  path = pathlib.Path(path)
  partial = path.with_name(f'.{path.name}.partial')
  partial.write_text(filled, encoding='utf-8')
  partial.replace(path)


def _policy(script: str) -> str:
  """Nothing is loaded, and no script runs but the page's own."""
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  return (
    f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
    "base-uri 'none'; form-action 'none'"
  )


def _part(name: str) -> str:
  return importlib.resources.files(__package__).joinpath(name).read_text(encoding='utf-8')


def _facts(facts: Mapping[str, str]) -> str:
  return ''.join(
    f'<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>' for k, v in facts.items()
  )


def _bar() -> str:
  shares = np.linspace(-LIMIT, LIMIT, 128, dtype=np.float32)[None]
  alt = (
    f'colour bar: light blue at -{LIMIT:g} and below, darker to black at 0, brown at 1, orange at '
    f'{LIMIT / 2:g} and light yellow at {LIMIT:g} and above'
  )
  return f'<img class="bar" src="{encoding.heat(shares, 128)}" alt="{alt}" width="256" height="14">'


def _options(names: Sequence[str]) -> str:
  return ''.join(f'<option>{escape(name)}</option>' for name in names)


def _sort_options(page: Contents) -> str:
  options = [('row', 'as given')]
  if page.right is not None:
    options.insert(0, ('wrong', 'wrong first'))
  if page.probabilities is not None:
    options.append(('probability', 'probability of the true class'))
  if page.score_names:
    options += [(f'map:{name}', f'score of {name}') for name in page.columns]
  return ''.join(f'<option value="{escape(v)}">{escape(text)}</option>' for v, text in options)


def _switches(page: Contents) -> str:
  switches = []
  if page.masks is not None:
    switches.append(('outline', 'outline'))
  if page.boxes is not None:
    switches.append(('box', 'boxes'))
  return ''.join(
    f'<label><input type="checkbox" id="show-{name}" checked> {text}</label>'
    for name, text in switches
  )


def _column_head(page: Contents, name: str) -> str:
  told = page.descriptions.get(name, '')
  label = escape(name).replace('_', '_<wbr>')
  if page.scores[name]:
    label = (
      f'<button type="button" data-column="{escape(name)}" title="sort by this map\'s score">'
      f'{label}</button>'
    )
  return f'<th scope="col">{label}<small>{escape(told)}</small></th>'


def _order(page: Contents) -> list[int]:
  """Wrong predictions first, the least probable true class before others."""
  numbers = range(len(page.images))
  if page.right is None:
    return list(numbers)
  sure = page.probabilities if page.probabilities is not None else [0.0] * len(page.images)
  return sorted(numbers, key=lambda index: (page.right[index], float(sure[index]), index))


def _data(page: Contents) -> str:
  """What the page's script sorts by and shows, as JSON that cannot end the element it is in."""
  scores = {}
  for name in page.score_names:
    having = {column: s[name] for column, s in page.scores.items() if name in s}
    scores[name] = {
      'higher': next(iter(having.values())).higher_is_better,
      'values': {column: _valid(s, s.value) for column, s in having.items()},
      'chances': {column: _valid(s, s.chance) for column, s in having.items()},
    }
  values = {
    'scores': scores,
    'wrong': page.right and [not right for right in page.right],
    'probabilities': page.probabilities
    and [float(p) if math.isfinite(p) else None for p in page.probabilities],
  }
  text = json.dumps(values, allow_nan=False, separators=(',', ':'))
  return text.replace('&', '\\u0026').replace('<', '\\u003c').replace('>', '\\u003e')


def _valid(score: Score, values: np.ndarray) -> list[float | None]:
  """Six figures of each value, None where it is not valid."""
  return [
    float(f'{v:.6g}') if good and math.isfinite(v) else None
    for v, good in zip(np.asarray(values).tolist(), np.asarray(score.valid).tolist(), strict=True)
  ]
