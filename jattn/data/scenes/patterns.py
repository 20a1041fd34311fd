"""Pictures that are no digits: line noise, a frame, and the cues of a shortcut."""

import math
from collections.abc import Sequence

import numpy as np

SPRITE = 28  # rows and columns of a digit in pixels
FRAME = 32  # of a frame, which leaves a dark line around the digit in it
_GREY, _FAINT = 160, 64
_CELL = 2


def line_noise(count: int, entropy: Sequence[int]) -> np.ndarray:
  """Two straight lines on each of `count` pictures: [count, 28, 28] uint8.

  A line leaves the corner at 0..72 degrees; the second is the line of another picture, mirrored
  with probability 0.4422 (two draws of 0.33 that both mirror the columns); each pixel of the lines
  is uniform in 204..254. As the generator of "Processing Megapixel Images with Deep
  Attention-Sampling Models" (Katharopoulos and Fleuret 2019, arXiv 1905.03711).

  Args:
    count: number of pictures.
    entropy: integers >= 0 that everything is drawn from.
  """
  # Raw words: NumPy does not promise that what Generator makes of them stays the same.
  raw = np.random.Philox(np.random.SeedSequence(tuple(entropy))).random_raw
  slope = np.tan(_uniform(raw(count)) * np.pi / 2.5)
  x = np.linspace(0, np.minimum(27.49, 27.49 / np.maximum(slope, 1e-9)), 56, axis=1)
  first = np.zeros((count, SPRITE, SPRITE), bool)
  rows, columns = np.rint(x).astype(int), np.rint(slope[:, None] * x).astype(int)
  first[np.arange(count)[:, None], rows, columns] = True
  second = first[np.argsort(raw(count), kind='stable')]
  mirrored = (_uniform(raw(count)) < 0.33) ^ (_uniform(raw(count)) < 0.33)
  second[mirrored] = second[mirrored][:, :, ::-1]
  shade = 0.8 + 0.2 * _uniform(raw(first.size)).reshape(first.shape)
  return ((first | second) * (255 * shade)).astype(np.uint8)


def _uniform(raw: np.ndarray) -> np.ndarray:
  """Words of 64 bits to numbers in [0, 1)."""
  return (raw >> 11) * 2.0**-53


def frame() -> np.ndarray:
  """A grey ring of one pixel around 32 x 32: [1, 32, 32] uint8."""
  ring = np.full((1, FRAME, FRAME), _GREY, np.uint8)
  ring[:, 1:-1, 1:-1] = 0
  return ring


def cues(num_classes: int) -> np.ndarray:
  """One bright cell on a faint plate, at a place for each class: [L, C, C] uint8.

  The plate has ceil(sqrt(L)) x ceil(sqrt(L)) cells of 2 x 2 pixels; all cues have the same
  brightness, so that only the place tells them apart.
  """
  cells = math.isqrt(num_classes - 1) + 1
  plates = np.full((num_classes, cells * cells), _FAINT, np.uint8)
  plates[np.arange(num_classes), np.arange(num_classes)] = 255
  plates = plates.reshape(num_classes, cells, cells)
  return plates.repeat(_CELL, axis=1).repeat(_CELL, axis=2)
