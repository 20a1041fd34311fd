"""Rotary positions turn without stretching, and only differences of positions count."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops import rotary_angles, rotate


def test_products_depend_on_the_difference_of_positions_alone(rng):
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 8)), jnp.float32) for _ in range(2))
  angles = rotary_angles((4, 5), 8)

  def turn(x, row, column):
    return rotate(x, angles[row * 5 + column][None])

  def product(a, b):
    return float((turn(q, *a) * turn(k, *b)).sum())

  np.testing.assert_allclose(product((0, 1), (2, 2)), product((1, 3), (3, 4)), atol=1e-5)
  assert abs(product((0, 1), (2, 2)) - product((0, 1), (3, 2))) > 1e-2
  np.testing.assert_allclose((turn(q, 3, 4) ** 2).sum(), (q**2).sum(), rtol=1e-5)


def test_a_reference_grid_counts_its_own_rows_and_columns():
  doubled = rotary_angles((4, 6), 8, reference=(2, 3)).reshape(4, 6, 4)
  single = rotary_angles((2, 3), 8).reshape(2, 3, 4)
  np.testing.assert_allclose(doubled[::2, ::2], single, atol=1e-6)


def test_a_width_that_does_not_split_in_four_is_refused():
  with pytest.raises(ValueError, match='width=6 must be a multiple of 4'):
    rotary_angles((2, 2), 6)
