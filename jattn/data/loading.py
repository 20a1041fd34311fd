"""A name becomes a dataset."""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import warnings
from collections.abc import Mapping, Sequence

import numpy as np

from jattn.data import cache, images
from jattn.data.dataset import Dataset, Held, Split, rows_digest
from jattn.data.errors import DataError
from jattn.data.folder import open_folder
from jattn.data.npz import open_npz
from jattn.data.prepared import open_prepared
from jattn.data.scenes import SceneDataset, open_scenes
from jattn.data.source import Examples, Source

IN_MEMORY_BYTES = 2 << 30
# Less than this decodes in about a second: not worth a file in the user's cache. The 5,000 digits
# are 15 MB, and take two seconds at every start on a slow machine.
CACHE_FROM_BYTES = 8 << 20
BAD_IMAGES_ALLOWED = 0.01
_CHUNK = 256
_HERE = pathlib.Path(__file__).parent


def load(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  size: int | None = None,
  eval_size: int | None = None,
  crop_ratio: float = 1.0,
  resample: images.Resample = 'bilinear',
  cache_dir: str | os.PathLike[str] | None = None,
  choose_fraction: float = 0.1,
  seed_of_split: int = 0,
  in_memory: bool | None = None,
  on_bad_image: str = 'error',
  max_pixels: int = images.MAX_PIXELS,
  workers: int = 0,
) -> Dataset:
  """Loads a dataset by name.

  =============  ================================================================================
  name           what
  =============  ================================================================================
  digits         5,000 MNIST digits that come with the package: 4,000 train, 500 choose, 500 test
  tfds:NAME      a dataset that TFDS prepared as array_record; NAME may be NAME/CONFIG:VERSION
  folder:PATH    PATH/CLASS/*.png, or PATH/train/CLASS/*.png and PATH/test/CLASS/*.png
  npz:PATH       a file with x_train, y_train, x_test, y_test
  scenes:KIND    digits on a canvas, with the truth of where to look: `jattn.data.scenes`; settings
                 follow, as in scenes:cluttered?size=60&clutter=4
  =============  ================================================================================

  The labels are checked once: on loading, or, of a tfds dataset that is streamed, as they are read.

  Args:
    name: as above.
    data_dir: where the prepared TFDS datasets are; else $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      For tfds:NAME only.
    size: S, the side of the square images for training; None: 32 for 28x28 images, the stored side
      for other square tfds and npz images, otherwise 224. `jattn.data.fit` says how images are
      resized; these with crop_ratio 1. Larger than the network takes where
      `augment.random_resized_crop` makes them smaller.
    eval_size: the side of the images for evaluation; None is `size`.
    crop_ratio: of images for evaluation, in (0, 1], see `jattn.data.fit`.
    resample: 'bilinear' or 'bicubic', for both.
    cache_dir: where decoded images are kept; by default $XDG_CACHE_HOME/jattn or ~/.cache/jattn,
      and there only datasets of 8 MiB and more. A damaged entry is found by its hash and rebuilt
      with a warning; a directory that cannot be written is no error.
    choose_fraction: in [0, 1): the share of train held out as `choose` where the dataset has no
      such split of its own.
    seed_of_split: draws that share.
    in_memory: whether to decode everything into memory now; None: if it takes at most 2 GiB.
    on_bad_image: for folders: 'error', or 'skip', which leaves out images that cannot be decoded,
      warns with their number, and refuses when they are more than 1%. When streamed, 'skip'
      decodes every image once on loading to find them.
    max_pixels: the largest height * width that is decoded.
    workers: processes that decode when streamed; 0: threads of this one.

  Raises:
    DataError: the dataset cannot be found or read, or a label is wrong; names the place.
    ValueError: a setting is out of its range.
  """
  for side in (size, eval_size):
    if side is not None and side < 1:
      raise ValueError(f'{size=} and {eval_size=} must be at least 1')
  if not 0 <= choose_fraction < 1 or seed_of_split < 0:
    raise ValueError(f'{choose_fraction=} must be in [0, 1) and {seed_of_split=} >= 0')
  if on_bad_image not in ('error', 'skip'):
    raise ValueError(f"{on_bad_image=} must be 'error' or 'skip'")
  splitting = {'choose_fraction': choose_fraction, 'seed_of_split': seed_of_split}
  kind, _, rest = name.partition(':')
  if name == 'digits':
    source = open_prepared('digits', data_dir=_HERE, max_pixels=max_pixels, **splitting)
    source = dataclasses.replace(source, label=source.label.removeprefix('tfds:'))
  elif kind == 'tfds' and rest:
    source = open_prepared(rest, data_dir=data_dir, max_pixels=max_pixels, **splitting)
  elif kind == 'folder' and rest:
    source = open_folder(rest, on_bad_image=on_bad_image, max_pixels=max_pixels, **splitting)
  elif kind == 'npz' and rest:
    source = open_npz(rest, **splitting)
  elif kind == 'scenes' and rest:
    sprites = functools.partial(
      load, data_dir=data_dir, size=28, cache_dir=cache_dir, in_memory=True, **splitting
    )
    source = open_scenes(
      rest, sizes=(size, eval_size), crop_ratio=crop_ratio, workers=workers, load=sprites
    )
  else:
    raise DataError(
      f"unknown dataset {name!r}: say 'digits', tfds:NAME, folder:PATH, npz:PATH or scenes:KIND"
    )

  size = size or source.natural_size
  square = images.Square(size, 1.0, resample)
  eval_square = images.Square(eval_size or size, crop_ratio, resample)
  parts = _parts(source, square, eval_square)
  num_bytes = sum(part.num_bytes for part in parts.values())
  if in_memory is None:
    in_memory = num_bytes <= IN_MEMORY_BYTES
  if in_memory:
    kept = source.encoded and (cache_dir is not None or num_bytes >= CACHE_FROM_BYTES)
    directory = pathlib.Path(cache_dir).expanduser() if cache_dir else cache.default_directory()
    facts = {'max_pixels': max_pixels, 'on_bad_image': on_bad_image}
    decoded = _decoded(source, parts, facts, directory if kept else None)
  elif on_bad_image == 'skip':
    # Every image once, for its label alone, which tells whether it can be decoded.
    parts = _parts(source, square, square)
    decoded = {name: (None, _read_all(part, keep_images=False)[1]) for name, part in parts.items()}
  else:
    decoded = {}
  splits = _splits(name, source, parts, decoded, together=square == eval_square or not in_memory)
  make = SceneDataset if kind == 'scenes' else Dataset
  return make(
    name=name,
    label=source.label,
    class_names=source.class_names,
    square=square,
    eval_square=eval_square,
    splits=splits,
    digest=source.digest,
    workers=workers,
  )


@dataclasses.dataclass(frozen=True)
class _Part:
  """Stored examples that are decoded together: `rows` of them (all where None) to `square`."""

  examples: Examples
  rows: np.ndarray | None
  square: images.Square

  def __len__(self) -> int:
    return len(self.examples) if self.rows is None else len(self.rows)

  @property
  def num_bytes(self) -> int:
    return len(self) * self.square.size**2 * 3


def _parts(source: Source, square: images.Square, eval_square: images.Square) -> dict[str, _Part]:
  """What is decoded together: a stored split if one square does for all, else a split."""
  if square == eval_square:
    return {name: _Part(examples, None, square) for name, examples in source.examples.items()}
  return {
    split: _Part(source.examples[stored], rows, square if split == 'train' else eval_square)
    for split, (stored, rows) in source.rows.items()
  }


def _splits(
  name: str,
  source: Source,
  parts: Mapping[str, _Part],
  decoded: Mapping[str, tuple[np.ndarray | None, np.ndarray]],
  *,
  together: bool,
) -> dict[str, Split]:
  """The three splits of what was decoded, without what could not be.

  Args:
    together: whether parts are stored splits, of which a split is some rows.
  """
  splits, bad, total = {}, 0, 0
  for split, (stored, rows) in source.rows.items():
    examples, held = source.examples[stored], {}
    part = stored if together else split
    found, labels = decoded.get(part, (None, None))
    inner = rows if together else None  # which of the decoded are this split's
    if labels is not None:
      good = (labels if inner is None else labels[inner]) >= 0
      bad, total = bad + int((~good).sum()), total + len(good)
      if not good.all():
        inner = np.flatnonzero(good) if inner is None else inner[good]
        rows = np.flatnonzero(good) if rows is None else rows[good]
    if found is not None:
      held = {parts[part].square: Held(found, labels, inner)}
    splits[split] = Split(examples, rows, held)
  if bad > BAD_IMAGES_ALLOWED * total:
    raise DataError(f'{name}: {bad} of {total} images cannot be decoded: more than 1%')
  if bad:
    warnings.warn(f'{name}: skipped {bad} of {total} images that cannot be decoded', stacklevel=3)
  if not len(splits['train']):
    raise DataError(f"{name}: split 'train' is empty")
  _warn_of_absent(name, source.class_names, splits['train'])
  return splits


def _warn_of_absent(name: str, class_names: Sequence[str], train: Split) -> None:
  for held in train.held.values():
    labels = held.labels if held.rows is None else held.labels[held.rows]
    absent = np.flatnonzero(np.bincount(labels, minlength=len(class_names)) == 0)
    if absent.size:
      names = ', '.join(repr(class_names[label]) for label in absent[:5])
      warnings.warn(
        f'{name}: {absent.size} of {len(class_names)} classes have no training example: {names}',
        stacklevel=4,
      )


def _decoded(
  source: Source, parts: Mapping[str, _Part], facts: dict, directory: pathlib.Path | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images and labels of every part, from the cache if they are there."""
  arrays = None
  if directory is not None:
    facts = {
      **facts,
      'decoding': images.DECODING_VERSION,
      'digest': source.digest,
      'class_names': source.class_names,
      'parts': {name: _facts(part) for name, part in parts.items()},
    }
    entry = cache.key(facts)
    arrays = cache.read(directory, entry, 2 * len(parts))
  if arrays is None:
    arrays = [array for part in parts.values() for array in _read_all(part)]
    if directory is not None:
      cache.write(directory, entry, arrays)
  for array in arrays:
    array.flags.writeable = False
  return {name: (arrays[2 * i], arrays[2 * i + 1]) for i, name in enumerate(parts)}


def _facts(part: _Part) -> list:
  return [len(part), dataclasses.astuple(part.square), rows_digest(part.rows, len(part))]


def _read_all(part: _Part, *, keep_images: bool = True) -> tuple[np.ndarray, np.ndarray]:
  count, size = len(part), part.square.size
  rows = np.arange(count) if part.rows is None else part.rows
  found = np.empty((count if keep_images else 0, size, size, 3), np.uint8)
  labels = np.empty(count, np.int32)

  def read(begin: int) -> None:
    chunk = slice(begin, min(begin + _CHUNK, count))
    decoded, labels[chunk] = part.examples.read(rows[chunk], part.square)
    if keep_images:
      found[chunk] = decoded

  with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as executor:
    futures = [executor.submit(read, begin) for begin in range(0, count, _CHUNK)]
    try:
      for future in futures:
        future.result()
    except BaseException:
      executor.shutdown(cancel_futures=True)
      raise
  return found, labels
