"""The pictures of a run: how it learned, and where it looked."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from jattn.types import AttentionMap, in_order

matplotlib.use('Agg')
from matplotlib import pyplot as plt

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
  columns = min(4, len(images))
  rows = -(-len(images) // columns)
  figure, axes = plt.subplots(
    rows,
    2 * columns,
    figsize=(2.9 * columns, 1.5 * rows + 0.7),
    squeeze=False,
    layout='constrained',
  )
  for axis in axes.flat:
    axis.set_axis_off()
  size = images.shape[1:3]
  for index, image in enumerate(images):
    left, right = axes[index // columns, 2 * (index % columns) :][:2]
    left.imshow(image, interpolation='nearest')
    right.imshow(image, interpolation='nearest')
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    # A shared scale: two pictures of one colour mean the same weight.
    shown = right.imshow(
      heat[index],
      cmap='inferno',
      alpha=0.65,
      vmin=0,
      vmax=max(float(heat.max()), 1e-9),
      extent=extent,
      interpolation='bilinear',
    )
    wrong = truth[index] is not None and truth[index] != predicted[index]
    text = f'{predicted[index]}' if truth[index] is None else f'{truth[index]} → {predicted[index]}'
    left.set_title(text, fontsize=9, color='crimson' if wrong else 'black')
  tall = rows > 1
  label = 'times the uniform weight' if tall else 'times uniform'
  bar = figure.colorbar(shown, ax=axes, shrink=0.6 if tall else 0.9, label=label)
  bar.solids.set_alpha(1)
  grid = maps[name].grid
  head = 'true → predicted (red: wrong)' if any(t is not None for t in truth) else 'predicted'
  figure.suptitle(
    f'{head}; map {name}, {grid[0]}×{grid[1]}\n{REDUCTIONS[maps[name].kind]}', fontsize=10
  )
  figure.savefig(path, dpi=110)
  plt.close(figure)
  return True


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
