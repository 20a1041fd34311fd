"""The exact border of a mask, as a path along the edges of its pixels."""

import numpy as np


def outline(mask: np.ndarray) -> str:
  """An SVG path along every edge between a pixel of the mask and one that is not.

  Args:
    mask: [H, W] bool; outside the image nothing is marked.

  Returns:
    Horizontal and vertical runs in pixels, ``M left top h length`` and ``M left top v length``.

  >>> outline(np.array([[True, True]]))
  'M0 0h2M0 1h2M0 0v1M2 0v1'
  """
  padded = np.pad(np.asarray(mask, bool), 1)
  across = padded[1:, 1:-1] != padded[:-1, 1:-1]  # [H + 1, W], edges that lie
  upright = padded[1:-1, 1:] != padded[1:-1, :-1]  # [H, W + 1], edges that stand
  parts = [f'M{begin} {y}h{length}' for y, begin, length in _runs(across)]
  parts += [f'M{x} {begin}v{length}' for x, begin, length in _runs(upright.T)]
  return ''.join(parts)


def traced(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """A picture [k H, k W, 3] with the border of a mask [H, W] in white, and black beside it."""
  scale = picture.shape[0] // mask.shape[0]
  inside = np.kron(np.asarray(mask, bool), np.ones((scale, scale), bool))
  white = inside & ~_shrunk(inside)
  black = ~inside & _grown(inside)
  marked = np.where(white[..., None], np.uint8(255), picture)
  return np.where(black[..., None], np.uint8(0), marked)


def _runs(edges: np.ndarray):
  """(line, begin, length) of every run of true along the lines [lines, places]."""
  steps = np.diff(np.pad(edges.astype(np.int8), ((0, 0), (1, 1))), axis=1)
  lines, begins = np.nonzero(steps == 1)
  _, ends = np.nonzero(steps == -1)
  return zip(lines.tolist(), begins.tolist(), (ends - begins).tolist(), strict=True)


def _grown(region: np.ndarray) -> np.ndarray:
  return _neighbours(region).any(axis=0)


def _shrunk(region: np.ndarray) -> np.ndarray:
  return _neighbours(region).all(axis=0)


def _neighbours(region: np.ndarray) -> np.ndarray:
  """[9, H, W]: every pixel's own value and those around it, false outside."""
  padded, (height, width) = np.pad(region, 1), region.shape
  return np.stack([padded[y : y + height, x : x + width] for y in range(3) for x in range(3)])
