"""The tables on top of the page: each map by each score, with its interval as a line."""

from collections.abc import Mapping, Sequence
from html import escape

import jax
import numpy as np

from jattn.explain.report.summary import Summary, direction, number, summarise
from jattn.explain.score import Score

_WIDTH, _HEIGHT = 90, 14


def table(
  key: jax.Array, scores: Mapping[str, Mapping[str, Score]], *, caption: str, noun: str
) -> str:
  """A row for each name, a column for each score: mean, interval, chance and number of images."""
  found = {
    row: {name: summarise(key, score) for name, score in named.items()}
    for row, named in scores.items()
    if named
  }
  if not found:
    return ''
  names = list(dict.fromkeys(name for row in found.values() for name in row))
  spans = {name: _span([row[name] for row in found.values() if name in row]) for name in names}
  head = ''.join(_head(name, next(r[name] for r in found.values() if name in r)) for name in names)
  body = ''.join(
    f'<tr><th scope="row">{escape(row)}</th>'
    + ''.join(_cell(values.get(name), spans[name]) for name in names)
    + '</tr>'
    for row, values in found.items()
  )
  return (
    f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">'
    f'<table class="summary"><caption>{escape(caption)}</caption><thead><tr>'
    f'<th scope="col">{escape(noun)}</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
  )


def _head(name: str, summary: Summary) -> str:
  told = direction(summary.higher_is_better)
  arrow = '↑' if summary.higher_is_better else '↓'
  return (
    f'<th scope="col">{escape(name)}<small><span aria-hidden="true">{arrow}</span> {told}</small>'
    '</th>'
  )


def _cell(summary: Summary | None, span: tuple[float, float]) -> str:
  if summary is None:
    return '<td>–</td>'
  if not summary.count:
    return '<td>no image can be scored</td>'
  low, high = number(summary.low), number(summary.high)
  images = f'{summary.count} image' + 's' * (summary.count != 1)
  return (
    f'<td><b>{number(summary.mean)}</b> [{low}, {high}]<small>{_strip(summary, span)}'
    f'<span>chance {number(summary.chance)}<br>{images}</span></small></td>'
  )


def _span(summaries: Sequence[Summary]) -> tuple[float, float]:
  values = [v for s in summaries if s.count for v in (s.low, s.high, s.chance)]
  low, high = (min(values), max(values)) if values else (0, 0)
  return low, high if high > low else low + 1


def _strip(summary: Summary, span: tuple[float, float]) -> str:
  """The interval as a line, the mean as a dot, chance dashed; the numbers stand beside it."""
  low, high = span
  room = _WIDTH - 8
  ends = (summary.low, summary.high, summary.mean, summary.chance)
  x = [round(float(4 + room * np.clip((v - low) / (high - low), 0, 1)), 1) for v in ends]
  middle = _HEIGHT / 2
  return (
    f'<svg class="strip" viewBox="0 0 {_WIDTH} {_HEIGHT}" aria-hidden="true">'
    f'<line class="chance" x1="{x[3]}" x2="{x[3]}" y1="0" y2="{_HEIGHT}"/>'
    f'<line class="interval" x1="{x[0]}" x2="{x[1]}" y1="{middle}" y2="{middle}"/>'
    f'<circle cx="{x[2]}" cy="{middle}" r="3"/></svg>'
  )
