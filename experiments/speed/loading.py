"""C8: batches a second of images that fit in memory, beside other loaders of the same array."""

import collections
import itertools
import tempfile
import warnings
from typing import Any

import numpy as np

from experiments.errors import ConfigError
from experiments.speed import clock

BATCH = 128


def loader(rounds: int, *, size: int = 45_000) -> dict[str, Any]:
  """CIFAR-10's shape: ``size`` images of 32x32x3 bytes and their labels, shuffled, 128 at a time.

  A turn is an epoch, so that nobody reads ahead in another's.

  ``ratios`` are batches a second of jattn over those of: NumPy indexing by a permutation; PyTorch's
  DataLoader with two workers; Grain's ``MapDataset`` in this process. ``ratio`` is over NumPy.
  """
  import grain

  import jattn.data

  try:
    import torch
  except ImportError:
    raise ConfigError("this row needs PyTorch: pip install 'jattn[torch]'") from None

  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (size, 32, 32, 3), np.uint8)
  labels = rng.integers(0, 10, size).astype(np.int32)
  with tempfile.TemporaryDirectory() as folder:
    file = f'{folder}/images.npz'
    few = images[:1000], labels[:1000]
    np.savez(file, x_train=images, y_train=labels, x_test=few[0], y_test=few[1])
    dataset = jattn.data.load(f'npz:{file}', choose_fraction=0, cache_dir=folder)

  batches = size // BATCH
  ours = dataset.batches('train', batch_size=BATCH, seed=0)

  def by_jattn():
    return itertools.islice(ours, batches)

  def by_index():
    order = np.random.default_rng(0).permutation(size)
    for at in range(0, batches * BATCH, BATCH):
      rows = order[at : at + BATCH]
      yield images[rows], labels[rows]

  class Pairs(torch.utils.data.Dataset):
    def __len__(self):
      return size

    def __getitem__(self, index):
      return images[index], labels[index]

  loading = torch.utils.data.DataLoader(
    Pairs(), BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
  )

  def by_grain():
    pairs = grain.MapDataset.source(range(size)).shuffle(seed=0)
    made = pairs.map(lambda index: (images[index], labels[index]))
    return iter(made.batch(BATCH, drop_remainder=True).to_iter_dataset())

  epochs = {
    'jattn': by_jattn,
    'numpy': by_index,
    'torch, 2 workers': lambda: loading,
    'grain': by_grain,
  }

  def turn(epoch):
    return lambda: collections.deque(epoch(), maxlen=0)

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # PyTorch's workers fork a process that has threads
    times = clock.take_turns({name: turn(epoch) for name, epoch in epochs.items()}, rounds)
  found = clock.summary(times)
  ms = found['median_ms']
  ratios = {name: ms[name] / ms['jattn'] for name in ms if name != 'jattn'}
  rates = {name: 1e3 * batches / spent for name, spent in ms.items()}
  return {'id': 'C8', 'ratio': ratios['numpy'], 'ratios': ratios, 'batches_per_second': rates}
