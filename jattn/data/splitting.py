"""How a dataset becomes train, choose and test: fixed, and choose always out of train."""

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from jattn.data.stream import permutation

SPLITS = ('train', 'choose', 'test')
TEST_FRACTION = 0.1  # where the dataset has no test split of its own

# Keeps the slices clear of the permutations of a training stream with the same seed.
_TEST_SALT, _CHOOSE_SALT = 0x7E57, 0xC4005E


def split_rows(
  lengths: Mapping[str, int], *, choose_fraction: float, seed_of_split: int
) -> dict[str, tuple[str, np.ndarray | None]]:
  """Maps the stored splits to train, choose and test.

  test: the stored 'test', else 'validation', else a fixed tenth of 'train', the same for every
  `seed_of_split`. choose: the stored 'choose', else round(choose_fraction * n) of what is left of
  'train', drawn by `seed_of_split`.

  Args:
    lengths: the number of examples of each stored split; 'train' is one of them.
    choose_fraction: in [0, 1).
    seed_of_split: any integer >= 0.

  Returns:
    for each of the three splits the stored split it comes from and its rows [n] int64 in rising
    order (None: all).
  """
  rows: dict[str, tuple[str, np.ndarray | None]] = {}
  left = None
  for split in ('test', 'validation'):
    if split in lengths and 'test' not in rows:
      rows['test'] = (split, None)
  if 'test' not in rows:
    test, left = _cut(np.arange(lengths['train']), TEST_FRACTION, 0, _TEST_SALT)
    rows['test'] = ('train', test)
  if 'choose' in lengths:
    rows['choose'] = ('choose', None)
  else:
    everything = np.arange(lengths['train']) if left is None else left
    choose, left = _cut(everything, choose_fraction, seed_of_split, _CHOOSE_SALT)
    rows['choose'] = ('train', choose)
  rows['train'] = ('train', left)
  return {split: rows[split] for split in SPLITS}


def split_paths(paths: Sequence[str], *, fraction: float, salt: str) -> np.ndarray:
  """Holds out a fraction of files, each by the hash of its own path.

  A file is held out if SHA-256(salt, path), read as a number in [0, 1), is below `fraction`: so
  adding files never moves one from one side to the other.

  Returns:
    [n] bool, True where held out.
  """
  held_out = np.zeros(len(paths), bool)
  for row, path in enumerate(paths):
    drawn = hashlib.sha256(f'{salt}\0{path}'.encode()).digest()[:8]
    held_out[row] = int.from_bytes(drawn, 'big') < fraction * 2**64
  return held_out


def _cut(rows: np.ndarray, fraction: float, *entropy: int) -> tuple[np.ndarray, np.ndarray]:
  count = round(fraction * len(rows))
  drawn = np.zeros(len(rows), bool)
  drawn[permutation(len(rows), *entropy)[:count]] = True
  return rows[drawn], rows[~drawn]
