import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.data.scenes.draws import apart, below, make_key, rounded, words


def threefry(key, block):
  """Threefry-2x32 with 20 rounds (Salmon et al. 2011) in Python's whole numbers."""
  mask, turns = 2**32 - 1, (13, 15, 26, 6, 17, 29, 16, 24)
  keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
  one, other = (block[0] + keys[0]) & mask, (block[1] + keys[1]) & mask
  for turn in range(20):
    one = (one + other) & mask
    other = ((other << turns[turn % 8] | other >> 32 - turns[turn % 8]) & mask) ^ one
    if turn % 4 == 3:
      group = turn // 4 + 1
      one = (one + keys[group % 3]) & mask
      other = (other + keys[(group + 1) % 3] + group) & mask
  return one, other


def test_words_are_threefry_blocks():
  # Other words under the same key would silently change every scene.
  assert threefry((0, 0), (0, 0)) == (0x6B200159, 0x99BA4EFE)
  key = threefry((0, 3), (0, 1))
  expected = [word for block in range(3) for word in threefry(key, (0, block))]
  np.testing.assert_array_equal(words(make_key(3, 1), 5), expected[:5])


def test_words_do_not_depend_on_the_flags_of_jax():
  before = words(make_key(0), 8)
  with jax.threefry_partitionable(not jax.config.jax_threefry_partitionable):
    np.testing.assert_array_equal(words(make_key(0), 8), before)
  with jax.default_prng_impl('rbg'):
    np.testing.assert_array_equal(words(make_key(0), 8), before)


def test_below_is_exact(rng):
  drawn = rng.integers(0, 2**32, 2000, np.uint32)
  drawn[:4] = [0, 1, 2**32 - 1, 2**16]
  counts = np.concatenate([[1, 2, 2**16 - 1, 2**16, 2**16 + 1, 2**31 - 1], 2 ** np.arange(30)])
  for count in map(int, counts):
    expected = [int(word) * count >> 32 for word in drawn]
    np.testing.assert_array_equal(below(jnp.asarray(drawn), count), expected)


def test_rounded_halves_the_ends():
  grid = jnp.asarray(np.arange(2**16, dtype=np.uint32) << 16)
  counts = np.bincount(rounded(grid, 8), minlength=9)
  np.testing.assert_array_equal(counts, 2**16 // 16 * np.array([1, 2, 2, 2, 2, 2, 2, 2, 1]))


def drawn_apart(*, positions, restart, draws=8000):
  keys = jax.vmap(jax.random.fold_in, (None, 0))(make_key(0), jnp.arange(draws))

  def one(key):
    return apart(key, 2, side=2, corner=lambda word: below(word, positions), restart=restart)

  return np.asarray(jax.jit(jax.vmap(one))(keys))


@pytest.mark.parametrize('restart', [True, False])
def test_apart(restart):
  positions = 4
  found = drawn_apart(positions=positions, restart=restart)
  places = list(itertools.product(range(positions), repeat=2))
  pairs = [(a, b) for a in places for b in places if max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= 2]
  partners = {a: sum(pair[0] == a for pair in pairs) for a in places}
  counts = dict.fromkeys(pairs, 0)
  for a, b in found.tolist():
    counts[tuple(a), tuple(b)] += 1  # KeyError: they overlap
  # All pairs alike, or the first place uniform and then all places that are left.
  expected = {
    pair: len(found) / (len(pairs) if restart else len(places) * partners[pair[0]])
    for pair in pairs
  }
  chi2 = sum((counts[pair] - expected[pair]) ** 2 / expected[pair] for pair in pairs)
  freedom = len(pairs) - 1
  assert abs(chi2 - freedom) < 5 * np.sqrt(2 * freedom)
