"""Datasets that TFDS prepared as array_record, read without TensorFlow."""

import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jattn.data import images
from jattn.data.errors import DataError
from jattn.data.source import Source, check_labels, digest_files
from jattn.data.splitting import split_rows

_NAME = re.compile(r'(?P<name>\w+)(/(?P<config>[\w.+=-]+))?(:(?P<version>\d+\.\d+\.\d+))?')
_VERSION = re.compile(r'\d+\.\d+\.\d+')


def open_prepared(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None,
  choose_fraction: float,
  seed_of_split: int,
  max_pixels: int,
) -> Source:
  """Opens NAME, NAME:VERSION, NAME/CONFIG or NAME/CONFIG:VERSION under the TFDS directory.

  Nothing is ever downloaded or prepared. The splits as stored become the three of jattn: 'test' is
  'test', else 'validation', else a tenth of 'train'; 'choose' is 'choose' if there is one, else a
  fixed slice of 'train'.

  Raises:
    DataError: not prepared (says what to run), not array_record, no image or no label in it.
  """
  directory = _find(name, data_dir)
  import tensorflow_datasets as tfds

  where = f'tfds:{name}'
  try:
    builder = tfds.builder_from_directory(directory)
    image_key, label_key = _keys(builder.info)
    stored, features = builder.info.splits, builder.info.features
    decoders = {
      key: tfds.decode.SkipDecoding()
      for key in features
      if isinstance(features[key], tfds.features.Image)
    }
    files = {split: [pathlib.Path(path) for path in stored[split].filepaths] for split in stored}
  except DataError as error:
    raise DataError(f'{where}: {error}') from None
  except Exception as error:
    # TFDS parses the JSON files beside the records: damaged, they raise anything.
    raise DataError(f'{where}: cannot read {directory}: {_reason(error)}') from error

  needed = _needed(where, list(stored))
  examples = {}
  for split in needed:
    missing = [path for path in files[split] if not path.is_file()]
    if missing:
      raise DataError(f'{where}: split {split!r}: the file {missing[0]} does not exist')
    try:
      records = builder.as_data_source(split, decoders=decoders)
    except NotImplementedError:
      raise DataError(
        f'{where}: {directory} is prepared as {builder.info.file_format.value}, '
        f'not array_record. {_advice(name)}'
      ) from None
    except Exception as error:
      raise DataError(f'{where}: split {split!r}: {_reason(error)}') from error
    examples[split] = Records(
      records,
      image_key=image_key,
      label_key=label_key,
      num_classes=features[label_key].num_classes,
      where=where,
      split=split,
      files=files[split],
      shard_lengths=list(stored[split].shard_lengths),
      max_pixels=max_pixels,
    )
  lengths = {split: len(examples[split]) for split in examples}
  return Source(
    label=f'tfds:{builder.info.full_name}',
    class_names=tuple(features[label_key].names),
    examples=examples,
    rows=split_rows(lengths, choose_fraction=choose_fraction, seed_of_split=seed_of_split),
    natural_size=images.natural_size(features[image_key].shape),
    digest=digest_files((path.name, path) for split in needed for path in files[split]),
  )


class Records:
  """The examples of one split."""

  def __init__(
    self,
    records: Any,
    *,
    image_key: str,
    label_key: str,
    num_classes: int,
    where: str,
    split: str,
    files: Sequence[pathlib.Path],
    shard_lengths: Sequence[int],
    max_pixels: int,
  ):
    self._records = records
    self._image_key, self._label_key = image_key, label_key
    self._num_classes = num_classes
    self._where, self._split = where, split
    self._files, self._ends = files, np.cumsum(shard_lengths)
    self._max_pixels = max_pixels
    self._length = int(self._ends[-1]) if len(self._ends) else 0

  def __len__(self) -> int:
    return self._length

  def read(self, indices: Sequence[int], square: images.Square) -> tuple[np.ndarray, np.ndarray]:
    encoded, labels = self.stored(indices)
    decoded = np.empty((len(encoded), square.size, square.size, 3), np.uint8)
    for row, (index, stored) in enumerate(zip(indices, encoded, strict=True)):
      try:
        image = images.decode(stored, max_pixels=self._max_pixels)
      except DataError as error:
        raise DataError(f'{self._place(int(index))}: the image {error}') from None
      decoded[row] = images.fit_square(image, square)
    return decoded, labels

  def stored(self, indices: Sequence[int]) -> tuple[list[bytes], np.ndarray]:
    """Images as they are stored, encoded, and their labels [n]."""
    indices = [int(index) for index in indices]
    records = self._fetch(indices)
    labels = np.array([record[self._label_key] for record in records], np.int64)
    try:
      labels = check_labels(
        labels, num_classes=self._num_classes, split=self._split, indices=indices
      )
    except DataError as error:
      raise DataError(f'{self._where}: {error}') from None
    return [record[self._image_key] for record in records], labels

  def _fetch(self, indices: list[int]) -> Sequence[Mapping[str, Any]]:
    try:
      return self._records.__getitems__(indices)
    except Exception as error:
      # array_record says which hash does not match, not which record of which file.
      for index in indices:
        try:
          self._records.__getitems__([index])
        except Exception as single:
          raise DataError(
            f'{self._place(index)}: cannot be read, the file is damaged ({_reason(single)}). '
            'Restore it or prepare the dataset again.'
          ) from single
      raise DataError(f'{self._where}: split {self._split!r}: {_reason(error)}') from error

  def _place(self, index: int) -> str:
    shard = int(np.searchsorted(self._ends, index, side='right'))
    return f'{self._where}: example {index} of split {self._split!r} in {self._files[shard]}'


def _find(name: str, data_dir: str | os.PathLike[str] | None) -> pathlib.Path:
  """The directory with the dataset_info.json of `name`."""
  parsed = _NAME.fullmatch(name)
  if not parsed:
    raise DataError(f"'tfds:{name}' is not tfds:NAME, NAME/CONFIG, with :MAJOR.MINOR.PATCH if any")
  root = pathlib.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR') or '~/tensorflow_datasets'
  ).expanduser()
  directory = root / parsed['name']
  if parsed['config']:
    directory /= parsed['config']
  elif not _versions(directory):
    configs = [path.name for path in _folders(directory) if _versions(path)]
    if len(configs) > 1:
      raise DataError(
        f'tfds:{name}: say which config: '
        + ', '.join(f'tfds:{parsed["name"]}/{config}' for config in configs)
      )
    if configs:
      directory /= configs[0]
  versions = _versions(directory)
  wanted = parsed['version'] or (versions[-1] if versions else None)
  if wanted not in versions or wanted is None:
    others = [path.name for path in _folders(root) if any(path.glob('**/dataset_info.json'))]
    there = f'prepared there: {", ".join(others[:10])}' if others else 'nothing is prepared there'
    if versions:
      there = f'prepared there: version {", ".join(versions)}'
    raise DataError(f'tfds:{name} is not prepared in {root} ({there}). {_advice(name)}')
  return directory / wanted


def _advice(name: str) -> str:
  return (
    'On a machine with tensorflow and a network run\n'
    '  python -c "import tensorflow_datasets as tfds; '
    f"tfds.builder('{name}', file_format='array_record').download_and_prepare()\"\n"
    'and point --data-dir (data_dir=) or TFDS_DATA_DIR at the folder it made. '
    "The dataset 'digits' needs none of this."
  )


def _folders(directory: pathlib.Path) -> list[pathlib.Path]:
  try:
    return sorted(path for path in directory.iterdir() if path.is_dir())
  except OSError:
    return []


def _versions(directory: pathlib.Path) -> list[str]:
  found = [
    path.name
    for path in _folders(directory)
    if _VERSION.fullmatch(path.name) and (path / 'dataset_info.json').is_file()
  ]
  return sorted(found, key=lambda version: tuple(map(int, version.split('.'))))


def _keys(info: Any) -> tuple[str, str]:
  """The names of the image and of the label among the features."""
  import tensorflow_datasets as tfds

  supervised = info.supervised_keys
  pair = supervised if supervised and len(supervised) == 2 else ('image', 'label')
  for key, kind in zip(pair, (tfds.features.Image, tfds.features.ClassLabel), strict=True):
    feature = info.features[key] if isinstance(key, str) and key in info.features else None
    if not isinstance(feature, kind):
      raise DataError(
        f'no image with one class label: feature {key!r} should be a {kind.__name__}, '
        f'the features are {", ".join(info.features)}'
      )
  return pair


def _needed(where: str, stored: list[str]) -> list[str]:
  if 'train' not in stored:
    raise DataError(f"{where}: there is no split 'train', only {', '.join(stored)}")
  others = [split for split in ('choose',) if split in stored]
  held_out = [split for split in ('test', 'validation') if split in stored]
  return ['train', *others, *held_out[:1]]


def _reason(error: BaseException) -> str:
  first = str(error).splitlines()[0] if str(error) else ''
  return f'{type(error).__name__}: {first[:200]}'
