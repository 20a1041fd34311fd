"""A name becomes a dataset."""

import concurrent.futures
import dataclasses
import os
import pathlib
import warnings
from collections.abc import Mapping

import numpy as np

from jattn.data import cache, images
from jattn.data.dataset import Dataset, Split
from jattn.data.errors import DataError
from jattn.data.folder import open_folder
from jattn.data.npz import open_npz
from jattn.data.prepared import open_prepared
from jattn.data.source import Examples, Source

IN_MEMORY_BYTES = 2 << 30
# Less than this decodes in about a second: not worth a file in the user's cache.
CACHE_FROM_BYTES = 32 << 20
BAD_IMAGES_ALLOWED = 0.01
_CHUNK = 256
_HERE = pathlib.Path(__file__).parent


def load(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  size: int | None = None,
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
  =============  ================================================================================

  The labels are checked once: on loading, or, of a tfds dataset that is streamed, as they are read.

  Args:
    name: as above.
    data_dir: where the prepared TFDS datasets are; else $TFDS_DATA_DIR, else ~/tensorflow_datasets.
      For tfds:NAME only.
    size: S, the side of the square images; None: 32 for 28x28 images, the stored side for other
      square tfds and npz images, otherwise 224. `jattn.data.fit` says how images are resized.
    cache_dir: where decoded images are kept; by default $XDG_CACHE_HOME/jattn or ~/.cache/jattn,
      and there only datasets of 32 MiB and more. A damaged entry is found by its hash and rebuilt
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
  if size is not None and size < 1:
    raise ValueError(f'{size=} must be >= 1')
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
  else:
    raise DataError(f"unknown dataset {name!r}: say 'digits', tfds:NAME, folder:PATH or npz:PATH")

  size = size or source.natural_size
  num_bytes = sum(map(len, source.examples.values())) * size * size * 3
  if in_memory is None:
    in_memory = num_bytes <= IN_MEMORY_BYTES
  if in_memory:
    facts = {'size': size, 'max_pixels': max_pixels, 'on_bad_image': on_bad_image}
    kept = source.encoded and (cache_dir is not None or num_bytes >= CACHE_FROM_BYTES)
    directory = pathlib.Path(cache_dir).expanduser() if cache_dir else cache.default_directory()
    decoded = _decoded(source, size, facts, directory if kept else None)
  elif on_bad_image == 'skip':
    decoded = {
      stored: (None, _read_all(examples, size, keep_images=False)[1])
      for stored, examples in source.examples.items()
    }
  else:
    decoded = dict.fromkeys(source.examples, (None, None))
  return _assemble(name, source, size, decoded, workers)


def _assemble(
  name: str,
  source: Source,
  size: int,
  decoded: Mapping[str, tuple[np.ndarray | None, np.ndarray | None]],
  workers: int,
) -> Dataset:
  splits, bad = {}, {}
  for stored, (_, labels) in decoded.items():
    if labels is not None and (labels < 0).any():
      bad[stored] = labels < 0
  if bad:
    count, total = sum(int(b.sum()) for b in bad.values()), sum(map(len, source.examples.values()))
    if count > BAD_IMAGES_ALLOWED * total:
      raise DataError(f'{name}: {count} of {total} images cannot be decoded: more than 1%')
    warnings.warn(f'{name}: skipped {count} of {total} images that cannot be decoded', stacklevel=3)
  for split, (stored, rows) in source.rows.items():
    if stored in bad:
      rows = np.arange(len(bad[stored])) if rows is None else rows
      rows = rows[~bad[stored][rows]]
    found, labels = decoded[stored]
    splits[split] = Split(
      source.examples[stored], rows, found, labels if found is not None else None
    )
  if not len(splits['train']):
    raise DataError(f"{name}: split 'train' is empty")
  dataset = Dataset(
    name=name,
    label=source.label,
    class_names=source.class_names,
    size=size,
    splits=splits,
    digest=source.digest,
    workers=workers,
  )
  if dataset.in_memory:
    train = splits['train']
    labels = train.labels if train.rows is None else train.labels[train.rows]
    absent = np.flatnonzero(np.bincount(labels, minlength=dataset.num_classes) == 0)
    if absent.size:
      names = ', '.join(repr(source.class_names[label]) for label in absent[:5])
      warnings.warn(
        f'{name}: {absent.size} of {dataset.num_classes} classes have no training example: {names}',
        stacklevel=3,
      )
  return dataset


def _decoded(
  source: Source, size: int, facts: dict, directory: pathlib.Path | None
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Images and labels of every stored split, from the cache if they are there."""
  arrays = None
  if directory is not None:
    lengths = {stored: len(examples) for stored, examples in source.examples.items()}
    facts = {
      **facts,
      'decoding': images.DECODING_VERSION,
      'digest': source.digest,
      'class_names': source.class_names,
      'lengths': lengths,
    }
    entry = cache.key(facts)
    arrays = cache.read(directory, entry, 2 * len(lengths))
  if arrays is None:
    arrays = [a for examples in source.examples.values() for a in _read_all(examples, size)]
    if directory is not None:
      cache.write(directory, entry, arrays)
  for array in arrays:
    array.flags.writeable = False
  return {stored: (arrays[2 * i], arrays[2 * i + 1]) for i, stored in enumerate(source.examples)}


def _read_all(
  examples: Examples, size: int, *, keep_images: bool = True
) -> tuple[np.ndarray, np.ndarray]:
  count = len(examples)
  found = np.empty((count if keep_images else 0, size, size, 3), np.uint8)
  labels = np.empty(count, np.int32)

  def read(begin: int) -> None:
    end = min(begin + _CHUNK, count)
    chunk, labels[begin:end] = examples.read(range(begin, end), size)
    if keep_images:
      found[begin:end] = chunk

  with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as executor:
    futures = [executor.submit(read, begin) for begin in range(0, count, _CHUNK)]
    try:
      for future in futures:
        future.result()
    except BaseException:
      executor.shutdown(cancel_futures=True)
      raise
  return found, labels
