"""Batches of a dataset that is larger than memory, decoded by Grain as they are needed."""

import dataclasses
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np

from jattn.data.images import Square
from jattn.data.stream import order
from jattn.types import Batch

Take = Callable[[np.ndarray, Square], tuple[np.ndarray, np.ndarray]]


class Positions(Protocol):
  """Which example stands at position j of what one process reads."""

  def __len__(self) -> int: ...

  def __getitem__(self, position: int) -> int:
    """The index of an example, or -1 for padding."""
    ...


@dataclasses.dataclass(frozen=True)
class Shuffled:
  """The endless order of training, this process's rows of every batch."""

  seed: int
  start: int
  batch_size: int
  rows: range
  num_examples: int

  def __len__(self) -> int:
    # Grain wants a length: this many examples are years of reading.
    return (sys.maxsize >> 16) // len(self.rows) * len(self.rows)

  def __getitem__(self, position: int) -> int:
    step, row = divmod(position, len(self.rows))
    batch = order(
      self.seed, self.start + step, batch_size=self.batch_size, num_examples=self.num_examples
    )
    return int(batch[self.rows[row]])


@dataclasses.dataclass(frozen=True)
class InOrder:
  """Every example once, this process's rows of every batch, then padding."""

  batch_size: int
  rows: range
  num_examples: int

  def __len__(self) -> int:
    return -(-self.num_examples // self.batch_size) * len(self.rows)

  def __getitem__(self, position: int) -> int:
    step, row = divmod(position, len(self.rows))
    index = step * self.batch_size + self.rows[row]
    return index if index < self.num_examples else -1

  def of_batch(self, step: int) -> np.ndarray:
    """The examples of one batch without padding."""
    begin = step * self.batch_size + self.rows.start
    return np.arange(begin, max(begin, min(begin + len(self.rows), self.num_examples)))


@dataclasses.dataclass(frozen=True)
class _ReadOne:
  """Position -> one example. A class, not a closure, so that it can go to a worker process."""

  take: Take
  positions: Positions
  square: Square

  def __call__(self, position: int) -> dict[str, Any]:
    index = self.positions[position]
    if index < 0:
      empty = np.zeros((self.square.size, self.square.size, 3), np.uint8)
      return {'images': empty, 'labels': np.int32(0), 'mask': np.bool_(False)}
    found, labels = self.take(np.array([index]), self.square)
    return {'images': found[0], 'labels': labels[0], 'mask': np.bool_(True)}


def batches(
  take: Take, positions: Positions, *, square: Square, batch_size: int, workers: int
) -> Iterator[Batch]:
  """Reads the positions in order, `batch_size` (of one process) at a time.

  Threads of this process decode two batches ahead; with `workers` > 0 that many processes do.
  """
  import grain

  examples = grain.MapDataset.range(len(positions)).map(_ReadOne(take, positions, square))
  options = grain.ReadOptions(
    num_threads=min(16, os.cpu_count() or 1), prefetch_buffer_size=2 * batch_size
  )
  stream = examples.to_iter_dataset(options).batch(batch_size)
  if workers > 0:
    from absl import flags

    # Grain's workers read an absl flag, and a program without absl.app has never parsed any.
    if not flags.FLAGS.is_parsed():
      flags.FLAGS.mark_as_parsed()
    stream = stream.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers))
  return (Batch(**batch) for batch in stream)
