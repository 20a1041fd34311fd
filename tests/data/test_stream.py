import doctest
import json

import numpy as np
import pytest

import jattn.data
from jattn.data import stream


def test_order_is_a_golden():
  # Another order under the same seed would silently change what a resumed run sees.
  np.testing.assert_array_equal(
    jattn.data.order(123, 7, batch_size=5, num_examples=9), [1, 3, 1, 4, 5]
  )
  assert doctest.testmod(stream).failed == 0


def test_order_is_pure():
  first = jattn.data.order(3, 11, batch_size=7, num_examples=20)
  stream.permutation.cache_clear()
  jattn.data.order(4, 2, batch_size=7, num_examples=20)
  np.testing.assert_array_equal(jattn.data.order(3, 11, batch_size=7, num_examples=20), first)
  assert first.dtype == np.int64


@pytest.mark.parametrize(('n', 'batch_size'), [(20, 7), (20, 20), (5, 13), (1, 3), (21, 7)])
def test_every_epoch_visits_every_example_once(n, batch_size):
  steps = n * 3  # whole epochs, whatever the batch size
  visited = np.concatenate(
    [jattn.data.order(0, step, batch_size=batch_size, num_examples=n) for step in range(steps)]
  ).reshape(-1, n)
  np.testing.assert_array_equal(np.sort(visited, axis=1), np.tile(np.arange(n), (len(visited), 1)))
  if n >= 20:
    assert len({tuple(epoch) for epoch in visited}) == len(visited), 'an epoch came twice'


@pytest.mark.parametrize('bits', [64, 6])  # of few bits many are equal
def test_numbers_are_sorted_stably(bits, monkeypatch):
  raw = np.random.default_rng(0).integers(0, 2**bits - 1, 5000, np.uint64, endpoint=True)

  class Bits:
    def __init__(self, seed):
      del seed

    def random_raw(self, n):
      return raw[:n]

  monkeypatch.setattr(np.random, 'Philox', Bits)
  stream.permutation.cache_clear()
  found = stream.permutation(5000, 1, 2)
  stream.permutation.cache_clear()
  np.testing.assert_array_equal(found, sorted(range(5000), key=lambda i: (raw[i], i)))


def test_seeds_differ():
  one = jattn.data.order(0, 0, batch_size=50, num_examples=50)
  assert not np.array_equal(one, jattn.data.order(1, 0, batch_size=50, num_examples=50))


def test_cached_permutation_cannot_be_spoiled():
  with pytest.raises(ValueError, match='read-only'):
    jattn.data.order(0, 0, batch_size=4, num_examples=8)[0] = 5


@pytest.mark.parametrize(
  'wrong',
  [{'seed': -1}, {'step': -1}, {'batch_size': 0}, {'num_examples': 0}],
)
def test_wrong_arguments(wrong):
  arguments = {'seed': 0, 'step': 0, 'batch_size': 1, 'num_examples': 1, **wrong}
  with pytest.raises(ValueError, match=next(iter(wrong))):
    jattn.data.order(
      arguments['seed'],
      arguments['step'],
      batch_size=arguments['batch_size'],
      num_examples=arguments['num_examples'],
    )


def test_stream_fingerprint_changes_with_what_changes_the_stream(tmp_path):
  rng = np.random.default_rng(0)
  arrays = {
    'x_train': rng.integers(0, 256, (30, 8, 8, 3), np.uint8),
    'y_train': np.arange(30) % 3,
    'x_test': rng.integers(0, 256, (6, 8, 8, 3), np.uint8),
    'y_test': np.arange(6) % 3,
  }

  identities = set()

  def fingerprint(name='a', seed=0, batch_size=4, change=None, **settings):
    (tmp_path / name).mkdir(exist_ok=True)
    np.savez(tmp_path / name / 'x.npz', **{**arrays, **(change or {})})
    dataset = jattn.data.load(f'npz:{tmp_path}/{name}/x.npz', **settings)
    found = jattn.data.stream_fingerprint(dataset, seed=seed, batch_size=batch_size)
    assert json.loads(json.dumps(found)) == found
    assert found['fingerprint'] == dataset.fingerprint
    identities.add(dataset.fingerprint)
    return json.dumps(found)

  base = fingerprint()
  assert fingerprint(name='moved') == base
  assert fingerprint(in_memory=False) == base
  altered = arrays['x_train'].copy()
  altered[17, 3, 3, 1] ^= 1
  others = [
    fingerprint(seed=1),
    fingerprint(batch_size=8),
    fingerprint(size=16),
    fingerprint(seed_of_split=1),
    fingerprint(choose_fraction=0.2),
    fingerprint(change={'x_train': altered}),
    fingerprint(change={'y_train': (np.arange(30) + 1) % 3}),
  ]
  assert len({base, *others}) == 1 + len(others)
  assert len(identities) == 1 + len(others) - 2, 'seed and batch size are not the dataset'
