"""Encoded images to uint8 RGB squares: the conversion table and the resizing rule."""

import io
import os

import numpy as np
from PIL import Image, ImageOps

from jattn.data.errors import DataError

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
MAX_PIXELS = 25_000_000
# Part of every cache key and fingerprint: raise it when the same bytes would decode otherwise.
DECODING_VERSION = 1

_ORIENTATION = 0x0112  # the EXIF tag
_ALPHA_MODES = ('LA', 'La', 'PA', 'RGBA', 'RGBa')
_PLAIN_MODES = ('1', 'L', 'P', 'RGB', 'RGBX', 'CMYK', 'YCbCr', 'LAB', 'HSV')


def decode(encoded: bytes | os.PathLike[str] | str, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
  """Decodes one image to RGB.

  The content decides on the format (JPEG, PNG, WEBP, BMP, GIF), not the name. The size in the
  header is checked before a pixel is decoded. The orientation in the EXIF data is applied. Then:

  ===========================  ==================================================================
  stored as                    becomes
  ===========================  ==================================================================
  RGB                          as it is
  grey, 8 bit                  the same value in all three channels
  1 bit                        0 or 255 in all three channels
  grey, 16 bit                 round(value / 257) in all three channels
  RGB(A) or grey+alpha, 16 bit the high byte of each value, then as 8 bit (what Pillow offers)
  palette                      the colours of the palette
  any with transparency        composited over black, the colour of padding
  CMYK, YCbCr, Lab, HSV        Pillow's conversion to RGB (no colour profile is applied)
  animation                    its first frame
  ===========================  ==================================================================

  Args:
    encoded: the bytes, or the path of a file.
    max_pixels: the largest height * width that is decoded.

  Returns:
    [H, W, 3] uint8, 0..255.

  Raises:
    DataError: not one of the formats, empty, truncated, damaged, too many pixels, or a pixel type
      that is not in the table. The message does not say which image: the caller knows.
  """
  try:
    file = io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded
    with Image.open(file, formats=FORMATS) as image:
      width, height = image.size
      if width * height > max_pixels:
        raise DataError(f'has {width} x {height} pixels, more than max_pixels={max_pixels}')
      # exif_transpose copies upright images too, which costs a quarter of decoding a small one.
      upright = image.getexif().get(_ORIENTATION, 1) == 1
      return _to_rgb(image if upright else ImageOps.exif_transpose(image))
  except DataError:
    raise
  except FileNotFoundError:
    raise DataError('does not exist') from None
  except Image.DecompressionBombError as error:
    raise DataError(f'has too many pixels: {error}') from None
  except Image.UnidentifiedImageError:
    raise DataError(f'is not an image in one of the formats {", ".join(FORMATS)}') from None
  except Exception as error:
    # Pillow's readers raise OSError, SyntaxError, struct.error, KeyError, ... on damaged bytes.
    reason = str(error).splitlines()[0] if str(error) else ''
    raise DataError(f'cannot be decoded: {type(error).__name__}: {reason[:200]}') from error


def fit(image: np.ndarray, size: int) -> np.ndarray:
  """Makes an image size x size. The one rule of resizing:

  1. An image that is size x size is not touched.
  2. A 28x28 image (MNIST and its kin) with size in 29..32 goes into the centre of zeros.
  3. Any other is resized until the shorter side is `size`, bilinear with antialiasing (Pillow), and
     cropped to the centre; only the part that is kept is ever computed, so that a 1x4000 image
     cannot blow up.

  Args:
    image: [H, W, 3] uint8.
    size: S, the side of the result in pixels.

  Returns:
    [S, S, 3] uint8.
  """
  height, width = image.shape[:2]
  if height == width == size:
    return image
  if height == width == 28 and 28 < size <= 32:
    before = (size - 28) // 2
    after = size - 28 - before
    return np.pad(image, ((before, after), (before, after), (0, 0)))
  side = min(height, width)
  left, top = (width - side) / 2, (height - side) / 2
  resized = Image.fromarray(image).resize(
    (size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side)
  )
  return np.asarray(resized)


def natural_size(shape: tuple[int | None, ...] | None) -> int:
  """The `size` taken when none is given: 32 for 28x28, H for HxH, otherwise 224."""
  if not shape or len(shape) < 2 or shape[0] is None or shape[0] != shape[1]:
    return 224
  return 32 if shape[0] == 28 else int(shape[0])


def _to_rgb(image: Image.Image) -> np.ndarray:
  mode = image.mode
  if mode == 'RGB' and 'transparency' not in image.info:
    return np.asarray(image)
  if mode == 'I' or mode.startswith('I;16'):
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
      raise DataError(f'holds grey values {values.min()}..{values.max()}, outside 0..65535')
    # 257 is odd, so value / 257 is never halfway between two integers.
    grey = ((values + 128) // 257).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)
  if mode in _ALPHA_MODES or (mode in _PLAIN_MODES and 'transparency' in image.info):
    rgba = image.convert('RGBA')
    black = Image.new('RGBA', rgba.size, (0, 0, 0, 255))
    return np.asarray(Image.alpha_composite(black, rgba).convert('RGB'))
  if mode in _PLAIN_MODES:
    return np.asarray(image.convert('RGB'))
  raise DataError(f'has the pixel type {mode!r}, which has no conversion to RGB here')
