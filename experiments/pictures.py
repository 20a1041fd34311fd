"""The pictures of a run: how it learned, and where it looked."""

import pathlib
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from jattn.types import AttentionMap, in_order

matplotlib.use('Agg')
from matplotlib import font_manager
from matplotlib import pyplot as plt

# Class names are in any script: these fonts, where they are installed, have what the first lacks,
# and what no font has is a box, which need not be said for each letter.
_FONTS = (
  'Noto Sans CJK SC',
  'Noto Sans SC',
  'Source Han Sans SC',
  'WenQuanYi Micro Hei',
  'PingFang SC',
  'Microsoft YaHei',
  'Hiragino Sans',
  'Malgun Gothic',
  'Noto Sans Arabic',
  'Noto Sans Devanagari',
  'Arial Unicode MS',
)
plt.rcParams['font.family'] = [
  'DejaVu Sans',
  *sorted(set(_FONTS) & set(font_manager.get_font_names()), key=_FONTS.index),
]
warnings.filterwarnings('ignore', 'Glyph .* missing from font')
# No name is a formula.
plt.rcParams['text.parse_math'] = False

REDUCTIONS = {
  'position': 'attention received: mean over heads and queries',
  'pool': 'pooling weights, mean over maps',
  'gate': 'mean over channels',
}


def spatial(attention: AttentionMap) -> np.ndarray | None:
  """One map over positions for each image, [B, H, W], as a multiple of the uniform weight.

  ``position``: how much attention each position receives, the mean over heads and queries; what a
  class token or padding receives is left out.
  ``pool``: the mean over maps. ``gate``: the mean over channels, divided by its mean over
  positions. None for kinds that say nothing of positions.
  """
  weights = np.asarray(attention.dense(), np.float64)
  height, width = attention.grid
  if attention.kind == 'position' and weights.shape[-1] == height * width:
    received = weights.mean(axis=(1, 2)).reshape(-1, height, width)
  elif attention.kind == 'pool':
    received = weights.mean(axis=1)
  elif attention.kind == 'gate' and weights.shape[1:3] == (height, width):
    received = weights.mean(axis=3)
  else:
    return None
  mean = received.mean(axis=(1, 2), keepdims=True)
  return received / np.where(mean > 0, mean, 1)


def draw_attention(
  path: pathlib.Path,
  *,
  images: np.ndarray,
  maps: Mapping[str, AttentionMap],
  truth: Sequence[str | None],
  predicted: Sequence[str],
) -> bool:
  """Draws each image beside the map over it, with true and predicted class.

  Args:
    path: the PNG to write.
    images: [B, H, W, 3] uint8.
    maps: of these images; the model's last one that speaks of positions is drawn.
    truth: B names, or None where nobody knows.
    predicted: B names.

  Returns:
    Whether there was a map to draw; without one nothing is written.
  """
  drawable = {name: grid for name, m in in_order(maps).items() if (grid := spatial(m)) is not None}
  if not drawable:
    return False
  name = list(drawable)[-1]
  heat = drawable[name]
  figure, pairs, beside = _pairs(len(images), images.shape[1] / images.shape[2])
  height, width = images.shape[1:3]
  apart = 1 + _BETWEEN / _SIDE
  for axis, image, weights, true, guess in zip(pairs, images, heat, truth, predicted, strict=True):
    axis.imshow(image, interpolation='nearest', extent=(0, width, height, 0))
    over = (apart * width, (apart + 1) * width, height, 0)
    axis.imshow(image, interpolation='nearest', extent=over)
    # A shared scale: two pictures of one colour mean the same weight.
    shown = axis.imshow(
      weights,
      cmap='inferno',
      alpha=0.65,
      vmin=0,
      vmax=max(float(heat.max()), 1e-9),
      extent=over,
      interpolation='bilinear',
    )
    axis.set_xlim(0, over[1])
    color = 'black' if true in (None, guess) else 'crimson'
    _entitle(axis, [guess] if true is None else [true, guess], fontsize=9, color=color, pad=3)
  label = 'times the uniform weight' if len(images) > 8 else 'times uniform'
  bar = figure.colorbar(shown, cax=beside, label=label)
  bar.solids.set_alpha(1)
  grid = maps[name].grid
  head = 'true → predicted (red: wrong)' if any(t is not None for t in truth) else 'predicted'
  figure.suptitle(
    f'{head}; map {name}, {grid[0]}×{grid[1]}\n{REDUCTIONS[maps[name].kind]}', fontsize=10
  )
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return True


# Inches: a picture, between the two of an image, between images, above them and beside them all.
_SIDE, _BETWEEN, _MARGIN, _TITLE, _HEAD, _BAR = 1.3, 0.08, 0.15, 0.22, 0.55, 0.8
_NARROWEST = 5.5  # what the caption needs


def _pairs(count: int, aspect: float) -> tuple[plt.Figure, list[plt.Axes], plt.Axes]:
  """A figure with a place for each of ``count`` pairs of pictures, at most four in a row.

  Places are reckoned here: the solver of matplotlib takes a second for these.

  Args:
    count: of images.
    aspect: an image's height as a multiple of its width.

  Returns:
    The figure, an axis for each pair and one for the bar of colours.
  """
  columns = min(4, count)
  rows = -(-count // columns)
  pair, tall = 2 * _SIDE + _BETWEEN, aspect * _SIDE
  width = columns * (pair + _MARGIN) + _MARGIN + _BAR
  left = max(0.0, _NARROWEST - width) / 2
  size = np.array([width + 2 * left, _HEAD + rows * (_TITLE + tall + _MARGIN)])
  figure = plt.figure(figsize=size)

  def place(x: float, y: float, wide: float, high: float) -> plt.Axes:
    """From the upper left corner."""
    return figure.add_axes((x / size[0], 1 - (y + high) / size[1], wide / size[0], high / size[1]))

  axes = []
  for index in range(count):
    row, column = divmod(index, columns)
    x = left + _MARGIN + column * (pair + _MARGIN)
    axes.append(place(x, _HEAD + _TITLE + row * (_TITLE + tall + _MARGIN), pair, tall))
    axes[-1].set_axis_off()
  high = min(size[1] - _HEAD - _TITLE - _MARGIN, 4.0)
  middle = (_HEAD + _TITLE + size[1] - _MARGIN - high) / 2
  return figure, axes, place(left + width - _BAR + 0.05, middle, 0.14, high)


def _entitle(axis: plt.Axes, names: Sequence[str], **style: Any) -> None:
  """Names as a title no wider than its picture: the longest lose letters until it is not."""
  names = [' '.join(name.split()) for name in names]
  title, renderer = axis.set_title('', **style), axis.figure.canvas.get_renderer()
  while True:
    title.set_text(' → '.join(names))
    longest = max(range(len(names)), key=lambda index: len(names[index]))
    if len(names[longest]) < 2 or title.get_window_extent(renderer).width <= axis.bbox.width:
      return
    names[longest] = names[longest].removesuffix('…')[:-1] + '…'


def draw_curves(path: pathlib.Path, metrics: Sequence[Mapping[str, Any]]) -> None:
  """Draws loss and accuracy over the steps, for each split in ``metrics.jsonl``."""
  figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout='constrained')
  for split in ('train', 'choose'):
    lines = [line for line in metrics if line['split'] == split]
    for axis, key in zip(axes, ('loss', 'accuracy'), strict=True):
      axis.plot([m['step'] for m in lines], [m[key] for m in lines], marker='.', label=split)
  for axis, key in zip(axes, ('loss', 'accuracy'), strict=True):
    axis.set_xlabel('step')
    axis.set_ylabel(key)
    axis.grid(alpha=0.3)
  axes[0].legend()
  figure.savefig(path, dpi=110)
  plt.close(figure)
