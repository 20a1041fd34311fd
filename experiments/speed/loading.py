"""C8: batches a second of images that fit in memory, beside other loaders of the same array."""

import itertools
import tempfile
import warnings
from typing import Any

import numpy as np

from experiments.errors import ConfigError
from experiments.speed import clock

BATCH = 128
BATCHES = 50  # in a turn


def loader(rounds: int, *, size: int = 45_000) -> dict[str, Any]:
  """CIFAR-10's shape: ``size`` images of 32x32x3 bytes and their labels, shuffled, 128 at a time.

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

  ours = dataset.batches('train', batch_size=BATCH, seed=0)

  def by_index():
    for epoch in itertools.count():
      order = np.random.default_rng(epoch).permutation(size)
      for at in range(0, size - BATCH + 1, BATCH):
        rows = order[at : at + BATCH]
        yield images[rows], labels[rows]

  class Pairs(torch.utils.data.Dataset):
    def __len__(self):
      return size

    def __getitem__(self, index):
      return images[index], labels[index]

  def by_torch():
    loading = torch.utils.data.DataLoader(
      Pairs(), BATCH, shuffle=True, num_workers=2, drop_last=True, persistent_workers=True
    )
    while True:
      yield from loading

  def by_grain():
    pairs = grain.MapDataset.source(range(size)).shuffle(seed=0).repeat()
    made = pairs.map(lambda index: (images[index], labels[index])).batch(BATCH)
    yield from made.to_iter_dataset()

  streams = {
    'jattn': ours,
    'numpy': by_index(),
    'torch, 2 workers': by_torch(),
    'grain': by_grain(),
  }

  def turn(stream):
    return lambda: [next(stream) for _ in range(BATCHES)]

  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # PyTorch's workers fork a process that has threads
    times = clock.take_turns({name: turn(stream) for name, stream in streams.items()}, rounds)
  found = clock.summary(times)
  ms = found['median_ms']
  ratios = {name: ms[name] / ms['jattn'] for name in ms if name != 'jattn'}
  rates = {name: 1e3 * BATCHES / spent for name, spent in ms.items()}
  return {'id': 'C8', 'ratio': ratios['numpy'], 'ratios': ratios, 'batches_per_second': rates}
