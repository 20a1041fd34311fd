"""The order of training examples: a pure function of (seed, step)."""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
  from jattn.data.dataset import Dataset


def order(seed: int, step: int, *, batch_size: int, num_examples: int) -> np.ndarray:
  """The examples of one training batch.

  The endless stream is the concatenation of one permutation of 0..n-1 per epoch, the permutation of
  epoch e drawn from (seed, e) alone; batch `step` is positions step*B .. step*B + B - 1 of it. So
  every epoch visits every example once, batches run across the borders of epochs, and resuming at a
  step needs neither state nor a file.

  >>> order(0, 0, batch_size=4, num_examples=6)
  array([0, 3, 5, 1])
  >>> order(0, 1, batch_size=4, num_examples=6)
  array([2, 4, 3, 4])

  Args:
    seed: any integer >= 0.
    step: the number of the batch, from 0.
    batch_size: B.
    num_examples: n.

  Returns:
    [B] int64, each in 0..n-1.

  Raises:
    ValueError: a negative seed or step, or a batch_size or num_examples below 1.
  """
  if seed < 0 or step < 0:
    raise ValueError(f'{seed=} and {step=} must be >= 0')
  if batch_size < 1 or num_examples < 1:
    raise ValueError(f'{batch_size=} and {num_examples=} must be >= 1')
  epoch, offset = divmod(step * batch_size, num_examples)
  parts, missing = [], batch_size
  while missing > 0:
    part = permutation(num_examples, seed, epoch)[offset : offset + missing]
    parts.append(part)
    missing -= len(part)
    epoch, offset = epoch + 1, 0
  return parts[0] if len(parts) == 1 else np.concatenate(parts)


@functools.lru_cache(maxsize=8)
def permutation(n: int, *entropy: int) -> np.ndarray:
  """A permutation of 0..n-1 drawn from the given integers >= 0: [n] int64, read-only.

  NumPy promises that the raw numbers of a bit generator stay the same from version to version, and
  promises no such thing of `Generator.permutation`: so the raw numbers are sorted.
  """
  raw = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n)
  result = np.argsort(raw).astype(np.int64)  # faster than a stable sort, and the same without ties
  ordered = raw[result]
  if (ordered[1:] == ordered[:-1]).any():
    result = np.argsort(raw, kind='stable').astype(np.int64)
  result.flags.writeable = False
  return result


def stream_fingerprint(dataset: 'Dataset', *, seed: int, batch_size: int) -> dict[str, Any]:
  """What decides the stream of training batches, as a JSON-able dict.

  A run saves it and compares it on resuming: two equal fingerprints are the same batches in the
  same order. The path of the data is not in it, so a moved copy is the same dataset.

  Returns:
    {'order_version', 'dataset', 'fingerprint', 'num_examples', 'num_classes', 'size', 'seed',
    'batch_size'}.
  """
  return {
    'order_version': 1,
    'dataset': dataset.label,
    'fingerprint': dataset.fingerprint,
    'num_examples': dataset.num_examples('train'),
    'num_classes': dataset.num_classes,
    'size': dataset.size,
    'seed': int(seed),
    'batch_size': int(batch_size),
  }
