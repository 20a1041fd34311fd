"""Arrays become small data: URIs, which hold fewer pixels where they are many."""

import base64
import io

import numpy as np
from PIL import Image

from jattn.explain.report.colours import levels, multiples, table

SIDES = (160, 128, 96, 72, 48, 32)
_PIXELS = 64 * 7 * 96**2
_LAYER_PIXELS = _PIXELS // 10
_LOSSLESS = 64  # smaller images are kept to the pixel
_SHOWN = 128  # pixels of the page along the longer side, about
_COLUMNS = 16  # heads side by side


def sides(cells: int) -> list[int]:
  """How long the longer side of a stored picture may be, the sides worth trying for so many.

  >>> sides(100)[0], sides(64 * 7)[0], sides(10**6)
  (160, 96, [32])
  """
  return [side for side in SIDES if cells * side**2 <= _PIXELS] or [SIDES[-1]]


def shown_size(height: int, width: int, most: int) -> tuple[int, int]:
  """(width, height) on the page: whole multiples of what is stored, so that pixels stay squares.

  >>> shown_size(32, 32, 96), shown_size(448, 224, 96)
  ((128, 128), (48, 96))
  """
  width, height = stored_size(height, width, most)
  scale = max(1, round(_SHOWN / max(height, width)))
  return width * scale, height * scale


def stored_size(height: int, width: int, most: int) -> tuple[int, int]:
  """(width, height), the longer side at most ``most``."""
  scale = min(1.0, most / max(height, width))
  return max(1, round(width * scale)), max(1, round(height * scale))


def picture(image: np.ndarray, most: int) -> str:
  """An image [H, W, 3] uint8 as data: URI."""
  drawn = Image.fromarray(image)
  size = stored_size(*image.shape[:2], most)
  if size != drawn.size:
    drawn = drawn.resize(size, Image.Resampling.BOX)
  if max(size) <= _LOSSLESS:
    return _uri(drawn, 'png', optimize=True)
  return _uri(drawn, 'jpeg', quality=85, subsampling=0)


def heat(shares: np.ndarray, most: int) -> str:
  """A map [H, W] of multiples in colour, as data: URI; a smaller one holds means over areas."""
  size = stored_size(*shares.shape, most)
  if size != shares.shape[::-1]:
    shares = _smaller(shares, size)
  return _paletted(levels(shares))


def layer_size(grids: list[tuple[int, int, int]], count: int) -> int:
  """The longest side of the heads of ``count`` images with (M, h, w) in each layer."""
  side = max((max(h, w) for _, h, w in grids), default=1)
  for most in range(side, 1, -1):
    sizes = [stored_size(h, w, most) for _, h, w in grids]
    pixels = sum(m * w * h for (m, *_), (w, h) in zip(grids, sizes, strict=True))
    if pixels * count <= _LAYER_PIXELS:
      return most
  return 1


def sheet(heads: np.ndarray, most: int) -> tuple[str, tuple[int, int]]:
  """Maps [M, h, w] side by side: a data: URI, and (width, height) in pixels of the maps.

  Each is coloured as multiples of its own even spread; between them one pixel is clear.
  """
  shares = multiples(heads)
  width, height = stored_size(*shares.shape[1:], most)
  across = min(len(shares), _COLUMNS)
  down = -(-len(shares) // across)
  clear = len(table())
  canvas = np.full((down * (height + 1) - 1, across * (width + 1) - 1), clear, np.uint8)
  for index, head in enumerate(shares):
    if (width, height) != head.shape[::-1]:
      head = _smaller(head, (width, height))
    top, left = index // across * (height + 1), index % across * (width + 1)
    canvas[top : top + height, left : left + width] = levels(head)
  return _paletted(canvas, transparency=clear), canvas.shape[::-1]


def _smaller(shares: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  return np.asarray(Image.fromarray(shares).resize(size, Image.Resampling.BOX))


def _paletted(indices: np.ndarray, **settings) -> str:
  drawn = Image.frombytes('P', indices.shape[::-1], np.ascontiguousarray(indices).tobytes())
  drawn.putpalette([*table().ravel().tolist(), 0, 0, 0])
  return _uri(drawn, 'png', optimize=True, **settings)


def _uri(drawn: Image.Image, kind: str, **settings) -> str:
  stream = io.BytesIO()
  drawn.save(stream, kind, **settings)
  return f'data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}'
