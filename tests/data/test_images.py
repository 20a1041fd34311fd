import io
import resource
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image

import jattn.data
from jattn.data import DataError, decode, fit


def encoded(image: Image.Image, kind: str = 'PNG', **settings) -> bytes:
  stream = io.BytesIO()
  image.save(stream, kind, **settings)
  return stream.getvalue()


def grey(values, dtype=np.uint8) -> Image.Image:
  return Image.fromarray(np.array(values, dtype))


def palette(**settings) -> bytes:
  image = Image.new('P', (2, 1))
  image.putpalette([10, 20, 30, 200, 100, 50] + [0] * 762)
  image.putdata([0, 1])
  return encoded(image, **settings)


RGB = np.array([[[10, 20, 30], [200, 100, 50]]], np.uint8)
RGBA = np.array([[[10, 20, 30, 255], [200, 100, 50, 0], [200, 100, 50, 51]]], np.uint8)
LA = np.array([[[90, 255], [90, 0]]], np.uint8)

TABLE = {
  'rgb': (encoded(Image.fromarray(RGB)), RGB[0]),
  'grey': (encoded(grey([[0, 77, 255]])), [[0] * 3, [77] * 3, [255] * 3]),
  '1 bit': (encoded(grey([[0, 255]]).convert('1')), [[0] * 3, [255] * 3]),
  # 128.5 is the border between 0 and 1; 300 / 257 = 1.17; Pillow's own conversion clips to 255.
  '16 bit': (
    encoded(grey([[0, 128, 129, 300, 32767, 65535]], np.uint16)),
    [[v] * 3 for v in (0, 0, 1, 1, 127, 255)],
  ),
  'rgba': (encoded(Image.fromarray(RGBA)), [[10, 20, 30], [0, 0, 0], [40, 20, 10]]),
  'grey+alpha': (encoded(Image.fromarray(LA, 'LA')), [[90] * 3, [0] * 3]),
  'palette': (palette(), RGB[0]),
  'palette, transparent': (palette(transparency=1), [[10, 20, 30], [0, 0, 0]]),
  'grey, transparent': (encoded(grey([[5, 90]]), transparency=90), [[5] * 3, [0] * 3]),
  'cmyk': (
    encoded(Image.new('CMYK', (8, 8), (0, 255, 255, 0)), 'JPEG', quality=100),
    [[255, 0, 0]] * 8,
  ),
  'gif': (
    encoded(grey([[0, 255]]), 'GIF', save_all=True, append_images=[grey([[255, 0]])]),
    [[0] * 3, [255] * 3],
  ),
  'bmp': (encoded(Image.fromarray(RGB), 'BMP'), RGB[0]),
  'webp': (encoded(Image.fromarray(RGB), 'WEBP', lossless=True), RGB[0]),
}


@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('kind', TABLE)
def test_conversion_table(kind):
  data, row = TABLE[kind]
  found = decode(data)
  assert found.dtype == np.uint8
  tolerance = 3 if kind == 'cmyk' else 0  # JPEG rounds
  np.testing.assert_allclose(found[0].astype(int), row, atol=tolerance)


def chunk(kind: bytes, body: bytes) -> bytes:
  """A chunk of a PNG file."""
  return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))


def test_16_bit_colour_keeps_the_high_byte():
  header = chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, 16, 2, 0, 0, 0))
  pixels = chunk(b'IDAT', zlib.compress(b'\0' + struct.pack('>HHH', 0x12FF, 0x80FF, 0xFF00)))
  data = b'\x89PNG\r\n\x1a\n' + header + pixels + chunk(b'IEND', b'')
  np.testing.assert_array_equal(decode(data), [[[0x12, 0x80, 0xFF]]])


@pytest.mark.parametrize('orientation', range(1, 9))
def test_exif_orientation(orientation):
  image = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
  exif = Image.Exif()
  exif[0x0112] = orientation
  found = decode(encoded(grey(image), exif=exif))[..., 0]
  expected = {
    1: image,
    2: image[:, ::-1],
    3: image[::-1, ::-1],
    4: image[::-1],
    5: image.T,
    6: np.rot90(image, -1),
    7: image[::-1, ::-1].T,
    8: np.rot90(image),
  }[orientation]
  np.testing.assert_array_equal(found, expected)


def bomb(kind: str) -> bytes:
  """A file of a few bytes whose header declares 900 million pixels."""
  side = 30_000
  if kind == 'PNG':
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', side, side, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(1000)))
  data = bytearray(encoded(Image.new('RGB', (16, 16)), kind))
  if kind == 'BMP':
    data[18:26] = struct.pack('<ii', side, side)
  elif kind == 'GIF':
    data[6:10] = struct.pack('<HH', side, side)
  elif kind == 'JPEG':
    place = data.index(b'\xff\xc0') + 5
    data[place : place + 4] = struct.pack('>HH', side, side)
  return bytes(data)


@pytest.mark.parametrize('kind', ['PNG', 'BMP', 'GIF', 'JPEG'])
def test_a_bomb_never_allocates(kind):
  data = bomb(kind)
  decode(encoded(Image.new('RGB', (16, 16)), kind))  # loads the plugin
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  begin = time.perf_counter()
  with pytest.raises(DataError, match='pixels'):
    decode(data)
  assert time.perf_counter() - begin < 1
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_max_pixels_is_the_limit():
  data = encoded(Image.new('RGB', (10, 7)))
  assert decode(data, max_pixels=70).shape == (7, 10, 3)
  with pytest.raises(DataError, match=r'10 x 7 pixels, more than max_pixels=69'):
    decode(data, max_pixels=69)


WHOLE = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)))
JPEG = encoded(Image.open(io.BytesIO(WHOLE)), 'JPEG')
BAD = {
  'empty': b'',
  'garbage': bytes(range(256)) * 8,
  'html': b'<!DOCTYPE html><html><body>404 Not Found</body></html>',
  'truncated png': WHOLE[: len(WHOLE) // 2],
  'truncated jpeg': JPEG[: len(JPEG) // 2],
  'header of png only': WHOLE[:40],
  'damaged png': WHOLE[:60] + bytes(200) + WHOLE[260:],
  'tiff': encoded(Image.new('RGB', (4, 4)), 'TIFF'),
  'gif without frame': encoded(Image.new('P', (4, 4)), 'GIF')[:13],
}


@pytest.mark.parametrize('kind', BAD)
def test_bad_images(kind):
  with pytest.raises(DataError) as raised:
    decode(BAD[kind])
  assert len(str(raised.value)) < 300


def test_fuzzed_images_raise_nothing_else():
  rng = np.random.default_rng(0)
  for data in (WHOLE, JPEG, TABLE['gif'][0], TABLE['webp'][0], TABLE['bmp'][0]):
    for _ in range(40):
      bad = bytearray(data)
      for place in rng.integers(0, min(len(bad), 200), 3):
        bad[place] = rng.integers(256)
      try:
        found = decode(bytes(bad), max_pixels=100_000)
      except DataError:
        continue
      assert found.dtype == np.uint8


def test_fit_pads_mnist_and_only_it():
  image = np.full((28, 28, 3), 9, np.uint8)
  padded = fit(image, 32)
  np.testing.assert_array_equal(padded[2:30, 2:30], image)
  assert padded.sum() == image.sum()
  assert fit(image, 28) is image
  assert fit(image, 29).sum() == image.sum()
  assert (fit(image, 33) == 9).all(), 'above 32 it is resized'
  assert (fit(image, 14) == 9).all()
  assert (fit(np.full((30, 30, 3), 9, np.uint8), 32) == 9).all()


def test_fit_takes_the_centre_square():
  image = np.zeros((4, 12, 3), np.uint8)
  image[:, 4:8] = 200
  np.testing.assert_array_equal(fit(image, 4), image[:, 4:8])
  np.testing.assert_array_equal(fit(image.transpose(1, 0, 2), 4), image[:, 4:8])


@pytest.mark.parametrize('resample', ['bilinear', 'bicubic'])
@pytest.mark.parametrize('crop_ratio', [1.0, 0.875, 0.7])
@pytest.mark.parametrize('shape', [(4, 12), (37, 50), (50, 37), (33, 33), (61, 20), (9, 200)])
def test_fit_is_to_resize_the_whole_and_take_the_centre(shape, crop_ratio, resample):
  """As torchvision's Resize, then its CenterCrop, written out with Pillow alone."""
  size = 24
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
  shorter = {1.0: 24, 0.875: 27, 0.7: 34}[crop_ratio]  # the whole part of 24 / crop_ratio
  height, width = (shorter * side // min(shape) for side in shape)
  filters = {'bilinear': Image.Resampling.BILINEAR, 'bicubic': Image.Resampling.BICUBIC}
  whole = np.asarray(Image.fromarray(image).resize((width, height), filters[resample]))
  top, left = round((height - size) / 2), round((width - size) / 2)
  expected = whole[top : top + size, left : left + size]
  found = fit(image, size, crop_ratio=crop_ratio, resample=resample)
  assert found.shape == (size, size, 3)
  # Of a very long image only a part is computed, from corners that Pillow takes in float32.
  assert np.abs(found.astype(int) - expected).max() <= (1 if max(shape) > 4 * min(shape) else 0)


def test_what_needs_no_resizing_is_cropped_alone():
  image = np.random.default_rng(0).integers(0, 256, (32, 41, 3), np.uint8)
  # Halves go to the even side: (32 - 28) / 2 = 2 rows and (41 - 28) / 2 = 6.5, so 6 columns.
  np.testing.assert_array_equal(fit(image, 28, crop_ratio=0.875), image[2:30, 6:34])
  digit = np.full((28, 28, 3), 9, np.uint8)
  assert (fit(digit, 28, crop_ratio=0.875) == 9).all(), 'zeros around digits are for ratio 1 alone'


@pytest.mark.parametrize(
  'settings', [{'size': 0}, {'crop_ratio': 0.0}, {'crop_ratio': 1.5}, {'resample': 'nearest'}]
)
def test_squares_that_cannot_be(settings):
  with pytest.raises(ValueError, match=next(iter(settings))):
    fit(np.zeros((4, 4, 3), np.uint8), **{'size': 4, **settings})


def test_fit_is_antialiased():
  board = np.indices((64, 64)).sum(axis=0) % 2 * 255
  found = fit(np.repeat(board[..., None], 3, -1).astype(np.uint8), 16)
  # Without antialiasing a checkerboard becomes all black, all white or another pattern.
  assert np.abs(found[2:-2, 2:-2].astype(int) - 127).max() <= 2


def test_fit_of_extreme_shapes():
  for shape in ((1, 1), (1, 4000), (4000, 1), (3, 5)):
    found = fit(np.full((*shape, 3), 50, np.uint8), 24)
    assert found.shape == (24, 24, 3)
    assert (found == 50).all()


def test_decode_is_public_and_reads_paths(tmp_path):
  (tmp_path / 'x.png').write_bytes(TABLE['rgb'][0])
  np.testing.assert_array_equal(jattn.data.decode(tmp_path / 'x.png'), RGB)
  with pytest.raises(DataError, match='does not exist'):
    decode(tmp_path / 'y.png')
