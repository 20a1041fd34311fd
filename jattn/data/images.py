"""Encoded images to uint8 RGB squares: the conversion table and the resizing rule."""

import dataclasses
import io
import math
import os
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from jattn.data.errors import DataError

FORMATS = ('JPEG', 'PNG', 'WEBP', 'BMP', 'GIF')
MAX_PIXELS = 25_000_000
# Part of every cache key and fingerprint: raise it when the same bytes would decode otherwise.
DECODING_VERSION = 2

Resample = Literal['bilinear', 'bicubic']
_LONG = 4  # times as long as wide
_FILTERS = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}

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


@dataclasses.dataclass(frozen=True)
class Square:
  """How images of any size become squares: the settings of `fit`.

  Attributes:
    size: S, the side of the square in pixels.
    crop_ratio: S over the length that the shorter side is resized to, in (0, 1]; timm's crop_pct.
    resample: 'bilinear' or 'bicubic', both with antialiasing.
  """

  size: int
  crop_ratio: float = 1.0
  resample: Resample = 'bilinear'

  def __post_init__(self):
    if self.size < 1:
      raise ValueError(f'{self.size=} must be at least 1')
    if not 0 < self.crop_ratio <= 1:
      raise ValueError(f'{self.crop_ratio=} must be in (0, 1]')
    if self.resample not in _FILTERS:
      raise ValueError(f"{self.resample=} must be 'bilinear' or 'bicubic'")

  @property
  def resized(self) -> int:
    """R, what the shorter side is resized to: floor(S / crop_ratio)."""
    return math.floor(self.size / self.crop_ratio)


def fit(
  image: np.ndarray, size: int, *, crop_ratio: float = 1.0, resample: Resample = 'bilinear'
) -> np.ndarray:
  """Makes an image size x size. The one rule of resizing:

  1. With R = floor(size / crop_ratio) the shorter side becomes R and the longer one
     floor(R * longer / shorter), with Pillow's antialiasing filter; an image whose shorter side is
     R already is not resized.
  2. Of that the centre is taken, from row round((height - size) / 2) and from column
     round((width - size) / 2) on, halves to the even number.
  3. But a 28x28 image (MNIST and its kin) with size in 29..32 and crop_ratio 1 goes into the centre
     of zeros as it is.

  So do torchvision's Resize and CenterCrop, and timm's evaluation with crop_pct = crop_ratio, bit
  for bit. Of an image four times as long as wide and more only the part that is kept is computed,
  so that a 1x4000 one cannot blow up; that may move a value by one.

  Args:
    image: [H, W, 3] uint8.
    size: S, the side of the result in pixels.
    crop_ratio: size over R, in (0, 1].
    resample: 'bilinear' or 'bicubic'.

  Returns:
    [S, S, 3] uint8.

  Raises:
    ValueError: a setting out of range.

  >>> fit(np.zeros((480, 640, 3), np.uint8), 224, crop_ratio=0.875).shape  # by way of 256 x 341
  (224, 224, 3)
  """
  return fit_square(image, Square(size, crop_ratio, resample))


def fit_square(image: np.ndarray, square: Square) -> np.ndarray:
  """`fit` with its settings in one."""
  height, width = image.shape[:2]
  size, shorter = square.size, square.resized
  if height == width == 28 and square.crop_ratio == 1 and 28 < size <= 32:
    before = (size - 28) // 2
    after = size - 28 - before
    return np.pad(image, ((before, after), (before, after), (0, 0)))
  whole = (
    (shorter, int(shorter * width / height))
    if height <= width
    else (int(shorter * height / width), shorter)
  )
  top, left = (round((length - size) / 2) for length in whole)
  if whole != (height, width):
    filter_ = _FILTERS[square.resample]
    if max(whole) >= _LONG * shorter:
      down, across = height / whole[0], width / whole[1]
      box = (left * across, top * down, (left + size) * across, (top + size) * down)
      # The last edge may be rounded to a hair outside the image, which Pillow refuses.
      box = (*box[:2], min(box[2], width), min(box[3], height))
      return np.asarray(Image.fromarray(image).resize((size, size), filter_, box=box))
    image = np.asarray(Image.fromarray(image).resize(whole[::-1], filter_))
  # Not a view where all of it is wanted: what is untouched is the same array.
  return image if whole == (size, size) else image[top : top + size, left : left + size]


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
