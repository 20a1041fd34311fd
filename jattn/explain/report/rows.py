"""One image of the page: itself, the maps over it, and the network's own maps to unfold."""

from html import escape

import numpy as np

from jattn.explain.report import encoding
from jattn.explain.report.colours import multiples
from jattn.explain.report.contents import Contents
from jattn.explain.report.outlines import outline
from jattn.explain.report.summary import in_words, number


def rows(page: Contents, order: list[int], shown: str | None, *, most_bytes: int) -> str:
  """A ``tbody`` for each image, in this order, with the score that is shown first.

  Pictures are as large as fits into ``most_bytes`` together; noise takes more than what is smooth.
  """
  grids = [heads.shape[1:] for heads in page.heads.values()]
  layers = encoding.layer_size(grids, len(page.images))
  for most in encoding.sides(len(page.images) * (len(page.columns) + 1)):
    drawn = '\n'.join(_row(page, index, shown, most, layers) for index in order)
    if len(drawn) <= most_bytes:
      break
  return drawn


def marks(page: Contents) -> str:
  """Outlines and boxes of every image, drawn once and used in each of its cells."""
  if page.masks is None and page.boxes is None:
    return ''
  drawn = []
  for index in range(len(page.images)):
    parts = ''
    if page.masks is not None:
      path = outline(page.masks[index])
      parts += f'<path class="halo outline" d="{path}"/><path class="line outline" d="{path}"/>'
    for top, left, bottom, right in () if page.boxes is None else page.boxes[index].tolist():
      place = f'x="{left}" y="{top}" width="{right - left}" height="{bottom - top}"'
      parts += f'<rect class="halo box" {place}/><rect class="line box" {place}/>'
    drawn.append(f'<g id="marks-{index}">{parts}</g>')
  return f'<svg class="definitions" aria-hidden="true"><defs>{"".join(drawn)}</defs></svg>'


def name_of(page: Contents, index: int) -> str:
  """``image 3: true cat, predicted dog (wrong)``."""
  parts = []
  if page.labels is not None:
    parts.append(f'true {page.class_name(page.labels[index])}')
  if page.predicted is not None:
    parts.append(f'predicted {page.class_name(page.predicted[index])}')
  if page.right is not None:
    parts.append('right' if page.right[index] else 'wrong')
  return f'image {index + 1}' + ': ' * bool(parts) + ', '.join(parts)


def score_of(page: Contents, column: str, index: int, shown: str | None) -> str:
  """What stands under a map: its value and chance."""
  score = page.scores[column].get(shown)
  if score is None:
    return ''
  if not bool(score.valid[index]):
    return '–'
  value, chance = float(score.value[index]), float(score.chance[index])
  return f'<b>{number(value)}</b> chance {number(chance)}'


def _row(page: Contents, index: int, shown: str | None, most: int, layers: int) -> str:
  height, width = page.images.shape[1:3]
  image = encoding.picture(page.images[index], most)
  marked = ''
  if page.masks is not None or page.boxes is not None:
    marked = (
      f'<svg class="marks" viewBox="0 0 {width} {height}" aria-hidden="true">'
      f'<use href="#marks-{index}"/></svg>'
    )
  size = encoding.shown_size(height, width, most)
  cells = ''.join(_cell(page, c, index, shown, most, size, marked) for c in page.columns)
  own = _heads(page, index, layers)
  if own:
    own = f'<tr class="own"><td colspan="{len(page.columns) + 1}">{own}</td></tr>'
  return (
    f'<tbody class="image" data-row="{index}" style="--image:url({image})"><tr><th scope="row">'
    f'<div class="picture">{_img(image, name_of(page, index), size)}{marked}</div>'
    f'{_told(page, index)}</th>{cells}</tr>{own}</tbody>'
  )


def _cell(
  page: Contents,
  column: str,
  index: int,
  shown: str | None,
  most: int,
  size: tuple[int, int],
  marked: str,
) -> str:
  shares, fault = page.shares[column][index], page.faults[column][index]
  words = [f'{column} over {name_of(page, index)}']
  words += [fault and f'the map is {fault}', _negative(shares)]
  words += [f'{name}: {in_words(score, index)}' for name, score in page.scores[column].items()]
  alt = '; '.join(word for word in words if word)
  flag = f'<p class="fault">{escape(fault)}</p>' if fault else ''
  score = score_of(page, column, index, shown)
  return (
    f'<td><div class="picture over">{_img(encoding.heat(shares, most), alt, size)}{marked}</div>'
    f'{flag}<p class="score">{score}</p></td>'
  )


def _negative(shares: np.ndarray) -> str:
  total = float(np.abs(shares).sum())
  part = float(-np.minimum(shares, 0).sum()) / total if total else 0.0
  return f'{number(100 * part)}% of its magnitude is negative' if part else ''


def _told(page: Contents, index: int) -> str:
  """What is said of an image below it."""
  parts = []
  if page.labels is not None:
    parts.append(f'true <b>{escape(page.class_name(page.labels[index]))}</b>')
  if page.predicted is not None:
    parts.append(f'predicted <b>{escape(page.class_name(page.predicted[index]))}</b>')
  lines = [f'<p>{index + 1}. {", ".join(parts)}</p>']
  if page.right is not None:
    word = 'right' if page.right[index] else 'wrong'
    lines.append(f'<p class="{word}">{word}</p>')
  if page.probabilities is not None:
    lines.append(f'<p>true class has probability {number(page.probabilities[index])}</p>')
  if page.captions is not None:
    lines.append(f'<p class="caption">{escape(str(page.captions[index]))}</p>')
  return ''.join(lines)


def _heads(page: Contents, index: int, most: int) -> str:
  """The network's own maps of an image, layer by layer and head by head, folded."""
  if not page.heads:
    return ''
  parts = []
  for path, values in page.heads.items():
    heads = values[index]
    uri, (width, height) = encoding.sheet(heads, most)
    scale = max(1, round(64 / max(encoding.stored_size(*heads.shape[1:], most))))
    largest = number(float(multiples(heads).max()))
    told = _count(heads)
    alt = (
      f'{path} of image {index + 1}: {told}; the largest value is {largest} times the even share'
    )
    parts.append(
      f'<figure><figcaption>{escape(path)}<br>{told}</figcaption>'
      f'{_img(uri, alt, (width * scale, height * scale))}</figure>'
    )
  return (
    f'<details><summary>Heads and layers of image {index + 1}</summary>'
    f'<div class="layers">{"".join(parts)}</div></details>'
  )


def _count(heads: np.ndarray) -> str:
  count, height, width = heads.shape
  return f'{count} head{"s" * (count != 1)} of {height}×{width}'


def _img(uri: str, alt: str, size: tuple[int, int]) -> str:
  return f'<img src="{uri}" alt="{escape(alt)}" width="{size[0]}" height="{size[1]}">'
