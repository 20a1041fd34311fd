"""A folder of class sub-folders."""

import collections
import os
import pathlib
import warnings
from collections.abc import Sequence

import numpy as np

from jattn.data import images
from jattn.data.errors import DataError
from jattn.data.source import Source, digest_files
from jattn.data.splitting import TEST_FRACTION, split_paths

EXTENSIONS = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif')
NATURAL_SIZE = 224
_CHOOSE_NAMES = ('choose', 'val', 'validation')


def open_folder(
  path: str | os.PathLike[str],
  *,
  choose_fraction: float,
  seed_of_split: int,
  on_bad_image: str,
  max_pixels: int,
) -> Source:
  """Opens PATH/{train,test,...}/CLASS/* or PATH/CLASS/*.

  With sub-folders 'train' and 'test': 'choose', 'val' or 'validation' is the choose split, if there
  is one. With 'train' and no 'test', 'val' or 'validation' is the test split (as ImageNet has it).
  Otherwise the sub-folders are the classes, and a tenth of the files is the test split by the hash
  of the relative path. Where no folder is the choose split, `choose_fraction` of the train files
  is, by the hash of `seed_of_split` and the relative path. Adding files moves none of the others.

  The classes are the folder names of the train split in the order of their code points; files in
  folders below a class belong to it. Names that begin with a dot are passed over. Files with an
  extension other than .jpg, .jpeg, .png, .webp, .bmp and .gif are left out with a warning.

  Raises:
    DataError: no such folder, no classes, a class without images, a test class unknown to train.
  """
  root = pathlib.Path(path).expanduser()
  where = f'folder:{path}'
  if not root.is_dir():
    raise DataError(f'{where}: there is no such folder')
  folders = _folders_of_splits(root)
  files: dict[str, list[tuple[str, str]]] = {}
  for split, folder in folders.items():
    files[split] = _scan(folder, where)
  class_names = tuple(sorted({class_name for class_name, _ in files['train']}))
  if not class_names:
    raise DataError(
      f'{where}: no images in class sub-folders: expected {root}/CLASS/*.png or '
      f'{root}/train/CLASS/*.png and {root}/test/CLASS/*.png'
    )
  examples = {}
  for split, found in files.items():
    unknown = sorted({class_name for class_name, _ in found} - set(class_names))
    if unknown:
      raise DataError(f'{where}: class {unknown[0]!r} of split {split!r} is not in train')
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    examples[split] = Files(
      [folders[split] / relative for _, relative in found],
      np.array([labels[class_name] for class_name, _ in found], np.int32),
      skip_bad=on_bad_image == 'skip',
      max_pixels=max_pixels,
    )
  return Source(
    label='folder',
    class_names=class_names,
    examples=examples,
    rows=_rows(files, choose_fraction=choose_fraction, seed_of_split=seed_of_split),
    natural_size=NATURAL_SIZE,
    digest=digest_files(
      (f'{split}/{relative}', folders[split] / relative)
      for split, found in files.items()
      for _, relative in found
    ),
  )


class Files:
  """The image files of one split."""

  def __init__(
    self,
    paths: Sequence[pathlib.Path],
    labels: np.ndarray,
    *,
    skip_bad: bool,
    max_pixels: int,
  ):
    self._paths, self._labels = paths, labels
    self._skip_bad, self._max_pixels = skip_bad, max_pixels

  def __len__(self) -> int:
    return len(self._paths)

  def read(self, indices: Sequence[int], square: images.Square) -> tuple[np.ndarray, np.ndarray]:
    """As `Examples.read`; a bad image that is to be skipped is zeros with label -1."""
    decoded = np.zeros((len(indices), square.size, square.size, 3), np.uint8)
    labels = self._labels[np.asarray(indices, np.int64)]
    for row, index in enumerate(indices):
      path = self._paths[index]
      try:
        decoded[row] = images.fit_square(images.decode(path, max_pixels=self._max_pixels), square)
      except DataError as error:
        if not self._skip_bad:
          raise DataError(f"{path}: {error}; remove it, or load with on_bad_image='skip'") from None
        labels[row] = -1
    return decoded, labels


def _folders_of_splits(root: pathlib.Path) -> dict[str, pathlib.Path]:
  if not (root / 'train').is_dir():
    return {'train': root}
  test = [root / name for name in ('test', 'val', 'validation') if (root / name).is_dir()][:1]
  if not test:
    return {'train': root}
  candidates = [root / name for name in _CHOOSE_NAMES]
  choose = [folder for folder in candidates if folder.is_dir() and folder != test[0]][:1]
  return {'train': root / 'train', 'test': test[0], **({'choose': choose[0]} if choose else {})}


def _scan(folder: pathlib.Path, where: str) -> list[tuple[str, str]]:
  """All images below the class sub-folders: (class name, path relative to `folder`), in order."""
  found, strange = [], collections.Counter()
  for class_folder in sorted(folder.iterdir()):
    if not class_folder.is_dir() or class_folder.name.startswith('.'):
      continue
    before, others = len(found), []
    for directory, below, names in os.walk(class_folder):
      below[:] = sorted(name for name in below if not name.startswith('.'))
      for name in sorted(name for name in names if not name.startswith('.')):
        file = pathlib.Path(directory, name)
        if file.suffix.lower() in EXTENSIONS:
          found.append((class_folder.name, file.relative_to(folder).as_posix()))
        else:
          others.append(file.suffix.lower() or '(none)')
    if len(found) == before:
      known = f' (files with other extensions: {_counts(others)})' if others else ''
      raise DataError(f'{where}: class folder {class_folder} holds no images{known}')
    strange.update(others)
  if strange:
    warnings.warn(
      f'{where}: left out {strange.total()} files with extensions that are not read: '
      f'{_counts(strange)}; read are {", ".join(EXTENSIONS)}',
      stacklevel=2,
    )
  return sorted(found, key=lambda entry: entry[1])


def _counts(extensions: Sequence[str] | collections.Counter) -> str:
  return ', '.join(f'{name} ({n})' for name, n in collections.Counter(extensions).most_common(5))


def _rows(
  files: dict[str, list[tuple[str, str]]], *, choose_fraction: float, seed_of_split: int
) -> dict[str, tuple[str, np.ndarray | None]]:
  train = [relative for _, relative in files['train']]
  kept = np.ones(len(train), bool)
  rows: dict[str, tuple[str, np.ndarray | None]] = {}
  for split, fraction, salt in (
    ('test', TEST_FRACTION, 'test'),
    ('choose', choose_fraction, f'choose {seed_of_split}'),
  ):
    if split in files:
      rows[split] = (split, None)
    else:
      held_out = split_paths(train, fraction=fraction, salt=salt) & kept
      rows[split] = ('train', np.flatnonzero(held_out))
      kept &= ~held_out
  return {'train': ('train', np.flatnonzero(kept)), 'choose': rows['choose'], 'test': rows['test']}
