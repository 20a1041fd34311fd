"""One colour scale for all methods: how many times its even share a pixel has."""

import functools

import numpy as np

LIMIT = 4.0
LEVELS = 64  # on either side of zero
# At equal steps: lightness rises evenly, and the halves lie at the two ends of the axis of yellow
# and blue, which is seen without red or green cones too. Inferno's purple is blue to such eyes.
_POSITIVE = ((0, 0, 0), (100, 40, 5), (196, 80, 16), (250, 150, 40), (255, 240, 140))
_NEGATIVE = ((0, 0, 0), (0, 58, 104), (20, 114, 186), (90, 175, 240), (180, 235, 255))


def multiples(maps: np.ndarray) -> np.ndarray:
  """Maps as multiples of an even spread: ``a / mean |a|`` of each, float32.

  One everywhere is a map that is spread evenly. The unit of a method drops out, and an even map
  stays even: nothing is stretched. Maps without any magnitude, and those that are not finite
  somewhere, are zero.

  Args:
    maps: [..., h, w], each [h, w] a map.

  >>> multiples(np.array([[[1.0, 3.0]], [[-2.0, 0.0]], [[0.0, np.inf]]])).tolist()
  [[[0.5, 1.5]], [[-2.0, 0.0]], [[0.0, 0.0]]]
  """
  maps = np.asarray(maps, np.float64)
  finite = np.isfinite(maps).all(axis=(-2, -1), keepdims=True)
  maps = np.where(finite, maps, 0)
  # By its largest value first, so that sums neither overflow nor vanish.
  top = np.abs(maps).max(axis=(-2, -1), keepdims=True)
  maps = maps / np.where(top > 0, top, 1)
  mean = np.abs(maps).mean(axis=(-2, -1), keepdims=True)
  return (maps / np.where(mean > 0, mean, 1)).astype(np.float32)


def levels(shares: np.ndarray) -> np.ndarray:
  """Multiples -> uint8 rows of ``table()``; what is beyond ``LIMIT`` takes the last colour.

  >>> levels(np.array([-9.0, 0.0, 1.0, 4.0])).tolist()
  [0, 63, 79, 126]
  """
  steps = LEVELS - 1
  return np.round(np.clip(np.asarray(shares) / LIMIT, -1, 1) * steps + steps).astype(np.uint8)


@functools.cache
def table() -> np.ndarray:
  """uint8 [127, 3]: from -LIMIT, light blue, over 0, black, to LIMIT, light yellow.

  Lightness rises with the magnitude on either side, so the sign is told by hue alone.
  """
  return np.concatenate([_ramp(_NEGATIVE)[:0:-1], _ramp(_POSITIVE)])


def _ramp(colours: tuple[tuple[int, int, int], ...]) -> np.ndarray:
  """uint8 [LEVELS, 3], linear between the colours, which stand at equal steps."""
  at, steps = np.linspace(0, len(colours) - 1, LEVELS), np.arange(len(colours))
  channels = [np.interp(at, steps, channel) for channel in np.transpose(colours)]
  return np.round(np.stack(channels, axis=1)).astype(np.uint8)


def colours_of(shares: np.ndarray) -> np.ndarray:
  """Multiples [...] -> RGB uint8 [..., 3]."""
  return table()[levels(shares)]


def overlay(images: np.ndarray, maps: np.ndarray, *, strength: float = 0.65) -> np.ndarray:
  """Maps in colour over their images in grey: [N, H, W, 3] uint8.

  Args:
    images: [N, H, W, 3] uint8, or floating in 0..1.
    maps: [N, H, W], raw.
    strength: of the map, 0..1.
  """
  grey = as_bytes(images).astype(np.float64) @ (0.299, 0.587, 0.114)
  mixed = strength * colours_of(multiples(maps)) + (1 - strength) * grey[..., None]
  return np.round(mixed).astype(np.uint8)


def as_bytes(images: np.ndarray) -> np.ndarray:
  """[N, H, W, 1 or 3] uint8 or floating in 0..1 -> [N, H, W, 3] uint8.

  Raises:
    ValueError: the shape or the type is another.
  """
  images = np.asarray(images)
  if images.ndim != 4 or images.shape[3] not in (1, 3):
    raise ValueError(f'{images.shape=} must be [N, H, W, 3]')
  if np.issubdtype(images.dtype, np.floating):
    images = np.round(np.clip(np.nan_to_num(images), 0, 1) * 255).astype(np.uint8)
  elif images.dtype != np.uint8:
    raise ValueError(f'{images.dtype=} must be uint8, or floating in 0..1')
  return np.broadcast_to(images, (*images.shape[:3], 3))
