"""Images and labels in one .npz file."""

import os
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np

from jattn.data import images
from jattn.data.errors import DataError
from jattn.data.source import Source, check_labels, digest_files
from jattn.data.splitting import split_rows
from jattn.npz_member import read_member


def open_npz(path: str | os.PathLike[str], *, choose_fraction: float, seed_of_split: int) -> Source:
  """Opens a file with x_train, y_train, x_test, y_test and, if it likes, x_choose and y_choose.

  Images: [n, H, W], [n, H, W, 1] or [n, H, W, 3]; uint8, or floats in [0, 1], which become
  round(255 * value). Labels: integers [n] or [n, 1]. `class_names` [L], an array of strings, names
  the classes; without it they are 0..max(y_train). Without x_choose the choose split is a fixed
  slice of train. Nothing is unpickled.

  Raises:
    DataError: names the file and the array that is missing, damaged or not as above.
  """
  file = pathlib.Path(path).expanduser()
  try:
    arrays = _read(file)
    splits = ['train', *(['choose'] if 'x_choose' in arrays else []), 'test']
    names = _class_names(arrays)
    examples = {}
    for split in splits:
      x, y = _images(arrays, f'x_{split}'), _labels(arrays, f'y_{split}')
      if len(x) != len(y):
        raise DataError(f'x_{split} has {len(x)} images and y_{split} {len(y)} labels')
      if len(names) == 0 and split == 'train':
        names = tuple(str(label) for label in range(max(int(y.max(initial=0)), 0) + 1))
      examples[split] = Arrays(x, check_labels(y, num_classes=len(names), split=split))
  except DataError as error:
    raise DataError(f'npz:{path}: {error}') from None
  lengths = {split: len(examples[split]) for split in splits}
  return Source(
    label='npz',
    class_names=names,
    examples=examples,
    rows=split_rows(lengths, choose_fraction=choose_fraction, seed_of_split=seed_of_split),
    natural_size=images.natural_size(arrays['x_train'].shape[1:3]),
    digest=digest_files([('npz', file)]),
    encoded=False,
  )


class Arrays:
  """The images and labels of one split."""

  def __init__(self, x: np.ndarray, y: np.ndarray):
    self._x, self._y = x, y

  def __len__(self) -> int:
    return len(self._x)

  def read(self, indices: Sequence[int], square: images.Square) -> tuple[np.ndarray, np.ndarray]:
    indices = np.asarray(indices, np.int64)
    x = self._x[indices]
    if x.dtype != np.uint8:
      x = np.rint(x.astype(np.float64) * 255).astype(np.uint8)
    if x.ndim == 3:
      x = x[..., None]
    x = np.broadcast_to(x, (*x.shape[:3], 3))
    side = square.size
    if x.shape[1:3] != (side, side) or square.crop_ratio != 1:
      fitted = [images.fit_square(np.ascontiguousarray(image), square) for image in x]
      x = np.stack(fitted) if fitted else np.zeros((0, side, side, 3), np.uint8)
    return np.ascontiguousarray(x), self._y[indices]


def _read(file: pathlib.Path) -> dict[str, np.ndarray]:
  wanted = [f'{kind}_{split}' for split in ('train', 'choose', 'test') for kind in 'xy']
  arrays = {}
  try:
    with zipfile.ZipFile(file) as archive:
      members = {pathlib.PurePath(info.filename).stem: info for info in archive.infolist()}
      for name in (*wanted, 'class_names'):
        if name in members:
          arrays[name] = _read_member(archive, members[name], name)
  except FileNotFoundError:
    raise DataError('there is no such file') from None
  except (OSError, zipfile.BadZipFile) as error:
    raise DataError(f'cannot be read as .npz: {error}') from None
  needed = [name for name in wanted if 'choose' not in name or 'x_choose' in arrays]
  missing = [name for name in needed if name not in arrays]
  if missing:
    raise DataError(f'there is no array {missing[0]!r}; it needs {", ".join(needed)}')
  return arrays


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> np.ndarray:
  try:
    return read_member(archive, info)
  except ValueError as error:
    raise DataError(f'array {name!r} {error}') from error


def _images(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
  x = arrays[name]
  if x.ndim not in (3, 4) or (x.ndim == 4 and x.shape[3] not in (1, 3)):
    raise DataError(f'array {name!r} has shape {x.shape}, not [n, H, W], [n, H, W, 1 or 3]')
  if 0 in x.shape[1:]:
    raise DataError(f'array {name!r} has shape {x.shape}: images without pixels')
  if x.dtype.kind == 'f':
    per_image = x.reshape(len(x), -1)
    # NaN fails both comparisons, so the test is that all are inside, not that any is outside.
    outside = ~((per_image >= 0) & (per_image <= 1)).all(axis=1)
    if outside.any():
      index = int(outside.argmax())
      low, high = per_image[index].min(), per_image[index].max()
      raise DataError(
        f'array {name!r} holds floats outside [0, 1]: image {index} has {low}..{high}'
      )
  elif x.dtype != np.uint8:
    raise DataError(f'array {name!r} is {x.dtype}, not uint8 or floats in [0, 1]')
  return x


def _labels(arrays: dict[str, np.ndarray], name: str) -> np.ndarray:
  y = arrays[name]
  if y.ndim == 2 and y.shape[1] == 1:
    y = y[:, 0]
  if y.ndim != 1:
    raise DataError(f'array {name!r} has shape {y.shape}, not [n]')
  if y.dtype.kind not in 'iu':
    check_labels(y, num_classes=1, split=name.removeprefix('y_'))
  return y


def _class_names(arrays: dict[str, np.ndarray]) -> tuple[str, ...]:
  if 'class_names' not in arrays:
    return ()
  names = arrays['class_names']
  if names.ndim != 1 or names.dtype.kind != 'U' or len(names) == 0:
    raise DataError("array 'class_names' is not an array of strings [L]")
  if len(set(names.tolist())) < len(names):
    twice = next(name for name in names.tolist() if names.tolist().count(name) > 1)
    raise DataError(f"array 'class_names' has {twice!r} twice")
  return tuple(str(name) for name in names)
