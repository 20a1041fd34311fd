"""Relative positions: the golden matrices, and what survives a change of size."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops import (
  relative_index,
  relative_index_1d,
  relative_logits,
  resize_relative,
  resize_relative_geometric,
)


def test_swins_2x2_index_and_its_transpose():
  want = [[4, 3, 1, 0], [5, 4, 2, 1], [7, 6, 4, 3], [8, 7, 5, 4]]
  assert relative_index((2, 2), sign='query-key').tolist() == want
  assert relative_index((2, 2), sign='key-query').tolist() == np.transpose(want).tolist()


def test_the_index_names_the_difference_on_an_oblong_grid():
  differences = [(a, b) for a in range(-1, 2) for b in range(-2, 3)]
  places = [(i, j) for i in range(2) for j in range(3)]
  index = relative_index((2, 3), sign='key-query')
  for q, query in enumerate(places):
    for k, key in enumerate(places):
      assert differences[index[q, k]] == (key[0] - query[0], key[1] - query[1])


def test_another_sign_is_refused():
  with pytest.raises(ValueError, match="sign='swin' must be"):
    relative_index((2, 2), sign='swin')


def test_bottleneck_and_halo_index_on_a_line():
  assert relative_index_1d(3, 3).tolist() == [[2, 3, 4], [1, 2, 3], [0, 1, 2]]
  halo = relative_index_1d(4, 8)
  assert halo[0].tolist() == list(range(7, 15))
  assert (halo.min(), halo.max()) == (4, 14)


@pytest.mark.parametrize('sizes', [(3, 2), (4, 4), (2, 7), (1, 2)])
def test_resizing_keeps_what_is_linear_in_the_share_of_the_farthest(sizes):
  def linear(height, width):
    down, right = (np.linspace(-1, 1, 2 * s - 1) if s > 1 else np.zeros(1) for s in (height, width))
    plane = 3 * down[:, None] - 2 * right[None, :] + 1
    return jnp.asarray(np.stack([plane, -plane], axis=-1), jnp.float32)

  np.testing.assert_allclose(resize_relative(linear(3, 2), sizes), linear(*sizes), atol=1e-6)


def test_resizing_keeps_a_table_of_one_entry_and_the_same_size():
  one = jnp.full((1, 2), 7.0)
  np.testing.assert_array_equal(resize_relative(one, [3]), jnp.full((5, 2), 7.0))
  assert resize_relative(one, [1]) is one


@pytest.mark.parametrize('sizes', [(5, 8), (7, 8), (4, 7), (3, 4), (2, 4)])
def test_geometric_resizing_puts_old_differences_at_places_that_grow_geometrically(sizes):
  """A table that holds the places themselves becomes the new differences."""

  def places(old, new):
    steps = np.arange(1, old)
    ratio = 1.01
    if new > old:  # the farthest falls on the farthest: 1 + r + ... + r^(S-2) = S' - 1
      roots = np.roots([*np.ones(old - 2), 2.0 - new])
      ratio = min(1.5, *(root.real for root in roots if abs(root.imag) < 1e-9 and root.real > 0))
    reached = np.array([sum(ratio**i for i in range(step)) for step in steps])
    return np.concatenate([-reached[::-1], [0], reached])

  down, right = places(4, sizes[0]), places(5, sizes[1])
  plane = 3 * down[:, None] - 2 * right[None, :] + 1
  new_down, new_right = (
    np.clip(np.arange(1 - size, size), old[0], old[-1])
    for size, old in zip(sizes, (down, right), strict=True)
  )
  want = 3 * new_down[:, None] - 2 * new_right[None, :] + 1.0
  got = resize_relative_geometric(jnp.asarray(np.stack([plane, -plane], axis=-1)), sizes)
  np.testing.assert_allclose(got, np.stack([want, -want], axis=-1), atol=3e-5)


def test_geometric_resizing_keeps_the_same_size_and_repeats_a_table_of_one_entry():
  one = jnp.full((1, 1, 2), 7.0)
  assert resize_relative_geometric(one, (1, 1)) is one
  np.testing.assert_array_equal(resize_relative_geometric(one, (3, 2)), jnp.full((5, 3, 2), 7.0))


def test_logits_are_the_two_products(rng):
  q, rows, columns = (rng.normal(size=s) for s in ((2, 3, 2, 4), (2, 5, 4), (3, 2, 4)))
  got = relative_logits(*(jnp.asarray(a, jnp.float32) for a in (q, rows, columns)))
  assert got.shape == (2, 6, 10)
  for i, j, m, a, b in np.ndindex(2, 3, 2, 5, 2):
    want = q[i, j, m] @ (rows[i, a] + columns[j, b])
    np.testing.assert_allclose(got[m, i * 3 + j, a * 2 + b], want, atol=1e-5)
