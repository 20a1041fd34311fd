"""A loaded dataset: batches for training and for evaluation."""

import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping

import numpy as np

from jattn.data import streaming
from jattn.data.errors import DataError
from jattn.data.images import DECODING_VERSION, Square
from jattn.data.source import Examples
from jattn.data.stream import order
from jattn.types import Batch

_SAMPLE = 2048  # images that mean and std of a streamed dataset are taken over
_CHUNK = 1024


@dataclasses.dataclass(frozen=True)
class Held:
  """Decoded images in memory.

  Attributes:
    images: [N, S, S, 3] uint8.
    labels: [N] int32.
    rows: [n] which of them belong to a split; None means all.
  """

  images: np.ndarray
  labels: np.ndarray
  rows: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Split:
  """One split: rows of stored examples, and what of them is in memory.

  Attributes:
    examples: where the images come from when they are not in memory.
    rows: [n] the examples of this split; None means all.
    held: decoded images by the square they were made to.
  """

  examples: Examples
  rows: np.ndarray | None
  held: Mapping[Square, Held] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    return len(self.examples) if self.rows is None else len(self.rows)

  def take(self, indices: np.ndarray, square: Square) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of examples of this split."""
    if square not in self.held:
      return self.examples.read(indices if self.rows is None else self.rows[indices], square)
    held = self.held[square]
    rows = indices if held.rows is None else held.rows[indices]
    return held.images.take(rows, axis=0), held.labels.take(rows)


class Dataset:
  """Square images with class labels, in three splits: train, choose and test.

  `choose` is held out of train and is for choosing; `test` is for reporting. Made by
  `jattn.data.load`.

  Attributes:
    name: the name it was loaded by.
    label: what it is, without the path it lies at.
    class_names: L names.
    num_classes: L.
    square, size: how images for training are made, and their side S; they are [S, S, 3].
    eval_square, eval_size: the same of images for evaluation.
    in_memory: whether the decoded images are held in memory.
    fingerprint: hex SHA-256 of the files, both squares, the class names, the splits and the version
      of the decoding; not of the path, nor of whether the images are in memory.
  """

  def __init__(
    self,
    *,
    name: str,
    label: str,
    class_names: tuple[str, ...],
    square: Square,
    eval_square: Square,
    splits: Mapping[str, Split],
    digest: str,
    workers: int = 0,
  ):
    self.name, self.label, self.class_names = name, label, class_names
    self.square, self.eval_square = square, eval_square
    self.size, self.eval_size = square.size, eval_square.size
    self.num_classes = len(class_names)
    self.in_memory = all(split.held for split in splits.values())
    self._splits, self._workers = splits, workers
    facts = {
      'decoding': DECODING_VERSION,
      'label': label,
      'class_names': class_names,
      'square': dataclasses.astuple(square),
      'eval_square': dataclasses.astuple(eval_square),
      'digest': digest,
      'splits': {name: rows_digest(split.rows, len(split)) for name, split in splits.items()},
    }
    self.fingerprint = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

  def __repr__(self) -> str:
    counts = ', '.join(f'{len(split)} {name}' for name, split in self._splits.items())
    sizes = f'{self.size}' + (f' and {self.eval_size}' if self.eval_size != self.size else '')
    return f'Dataset({self.name!r}: {counts}, {self.num_classes} classes, size {sizes})'

  def num_examples(self, split: str) -> int:
    """The number of examples of 'train', 'choose' or 'test'."""
    return len(self._split(split))

  def arrays(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """All of a split at once: images [n, S, S, 3] uint8 and labels [n] int32.

    The images of train are those for training, of choose and test those for evaluation.

    Raises:
      DataError: the dataset is streamed, not in memory.
    """
    found = self._split(split)
    if not found.held:
      raise DataError(f'{self.name} is not in memory: load it with in_memory=True for arrays')
    (square, held), *_ = found.held.items()
    if held.rows is None:
      return held.images, held.labels
    return found.take(np.arange(len(found)), square)

  def batches(
    self,
    split: str = 'train',
    *,
    batch_size: int,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
  ) -> Iterator[Batch]:
    """The endless training stream; batch k is a pure function of (seed, start + k).

    Every epoch is a fresh permutation and visits each example once; batches run across the borders
    of epochs. See `jattn.data.order`.

    Args:
      split: 'train', 'choose' or 'test'.
      batch_size: B, over all processes; divisible by `process_count`.
      seed: of the order, an integer >= 0.
      start: the first step, to resume at.
      process_index: p; this process gets rows p*B/P .. (p+1)*B/P - 1 of every batch.
      process_count: P.

    Yields:
      Batch with images [B/P, S, S, 3] uint8; the mask is all True.

    Raises:
      ValueError: sizes that do not fit each other. DataError: the split is empty.
    """
    found = self._split(split)
    rows = _rows_of_process(batch_size, process_index, process_count)
    if not len(found):
      raise DataError(f'{self.name}: split {split!r} is empty')
    order(seed, start, batch_size=batch_size, num_examples=len(found))  # checks its arguments

    if self.square not in found.held:
      positions = streaming.Shuffled(seed, start, batch_size, rows, len(found))
      return streaming.batches(
        found.take, positions, square=self.square, batch_size=len(rows), workers=self._workers
      )
    return self._gathered(found, seed, start, batch_size, slice(rows.start, rows.stop))

  def eval_batches(
    self, split: str, *, batch_size: int, process_index: int = 0, process_count: int = 1
  ) -> Iterator[Batch]:
    """Every example of a split once, in order, over all processes together.

    The last batch is padded with images 0, labels 0 and mask False. All processes yield the same
    number of batches. Arguments and errors as in `batches`; images are `eval_size` wide and high.
    """
    found = self._split(split)
    rows = _rows_of_process(batch_size, process_index, process_count)
    if not len(found):
      raise DataError(f'{self.name}: split {split!r} is empty')
    positions = streaming.InOrder(batch_size, rows, len(found))
    square = self.eval_square
    if square not in found.held:
      return streaming.batches(
        found.take, positions, square=square, batch_size=len(rows), workers=self._workers
      )
    return (
      _padded(*found.take(positions.of_batch(step), square), len(rows))
      for step in range(len(positions) // len(rows))
    )

  @property
  def mean(self) -> tuple[float, float, float]:
    """Per channel over the train split, in [0, 1]; over 2,048 even-spaced images when streamed."""
    return self._moments[0]

  @property
  def std(self) -> tuple[float, float, float]:
    """Per channel over the train split, in [0, 1], as `mean`; 1 where all its pixels are equal."""
    return self._moments[1]

  @functools.cached_property
  def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
    train = self._splits['train']
    indices = np.arange(len(train))
    if self.square not in train.held and len(train) > _SAMPLE:
      indices = np.linspace(0, len(train) - 1, _SAMPLE).astype(np.int64)
    histogram = np.zeros((3, 256), np.int64)
    for begin in range(0, len(indices), _CHUNK):
      chunk, _ = train.take(indices[begin : begin + _CHUNK], self.square)
      for channel in range(3):
        histogram[channel] += np.bincount(chunk[..., channel].ravel(), minlength=256)
    levels = np.arange(256) / 255
    share = histogram / histogram.sum(axis=1, keepdims=True)
    mean = share @ levels
    std = np.sqrt((share * (levels - mean[:, None]) ** 2).sum(axis=1))
    std[std < 1e-6] = 1  # nothing to divide by
    return tuple(map(float, mean)), tuple(map(float, std))

  def _split(self, split: str) -> Split:
    if split not in self._splits:
      raise ValueError(f'{split=} must be one of {", ".join(self._splits)}')
    return self._splits[split]

  def _gathered(
    self, split: Split, seed: int, start: int, batch_size: int, rows: slice
  ) -> Iterator[Batch]:
    mask = np.ones(rows.stop - rows.start, bool)
    mask.flags.writeable = False
    for step in itertools.count(start):
      indices = order(seed, step, batch_size=batch_size, num_examples=len(split))[rows]
      found, labels = split.take(indices, self.square)
      yield Batch(images=found, labels=labels, mask=mask)


def _rows_of_process(batch_size: int, process_index: int, process_count: int) -> range:
  if batch_size < 1 or process_count < 1 or batch_size % process_count:
    raise ValueError(f'{batch_size=} must be positive and divisible by {process_count=}')
  if not 0 <= process_index < process_count:
    raise ValueError(f'{process_index=} must be in 0..{process_count - 1}')
  share = batch_size // process_count
  return range(process_index * share, (process_index + 1) * share)


def _padded(found: np.ndarray, labels: np.ndarray, length: int) -> Batch:
  missing = length - len(found)
  mask = np.arange(length) < len(found)
  if missing:
    found = np.concatenate([found, np.zeros((missing, *found.shape[1:]), found.dtype)])
    labels = np.concatenate([labels, np.zeros(missing, labels.dtype)])
  return Batch(images=found, labels=labels, mask=mask)


def rows_digest(rows: np.ndarray | None, count: int) -> str:
  """The SHA-256 of which rows these are; None is all `count`."""
  rows = np.arange(count) if rows is None else rows
  return hashlib.sha256(np.ascontiguousarray(rows, '<i8').data).hexdigest()
