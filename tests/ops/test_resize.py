"""Resizing of learned positions: PyTorch's numbers, and the formula on oblong grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops import resize_positions

# torch.nn.functional.interpolate(t, size, mode='bicubic', antialias=True) in float64.
TORCH = {
  'narrower': (
    [[1, -2, 3], [4, 0, 5]],
    [
      [-0.42474866942637507, 1.0010771310298217],
      [1.0746388443017656, 2.109951845906902],
      [2.5740263580299056, 3.218826560783982],
    ],
  ),
  'wider': (
    [[1, -2, 3, 7], [4, 0, 5, 1], [2, 2, -1, 0]],
    [
      [
        2.2819098036794667,
        -0.7743340006489019,
        0.9981942215088283,
        4.600421396943317,
        4.983879182615138,
      ],
      [
        2.882524077046549,
        1.7988094135844486,
        1.2570224719101124,
        0.8649973662691042,
        0.06282411408815922,
      ],
    ],
  ),
}


def keys(x):
  """Keys' cubic with a = -1/2."""
  x = np.abs(x)
  near = 1.5 * x**3 - 2.5 * x**2 + 1
  far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
  return np.where(x <= 1, near, np.where(x < 2, far, 0))


def resize_axis(table, new):
  """Along the first axis, by the formula of the docstring."""
  old = len(table)
  rows = []
  for i in range(new):
    centre = (i + 0.5) * old / new - 0.5
    weights = keys((np.arange(old) - centre) / max(1, old / new))
    rows.append(np.tensordot(weights / weights.sum(), table, axes=1))
  return np.stack(rows)


@pytest.mark.parametrize('case', TORCH)
def test_equals_torch(case):
  given, want = (np.asarray(a, np.float64) for a in TORCH[case])
  table = jnp.asarray(given[..., None], jnp.float32)
  got = jax.jit(lambda t: resize_positions(t, want.shape))(table)
  np.testing.assert_allclose(got[..., 0], want, atol=1e-5)


@pytest.mark.parametrize('grid', [(9, 4), (2, 12), (1, 1)])
def test_equals_the_formula_on_oblong_grids(rng, grid):
  table = rng.normal(size=(4, 6, 3))
  want = resize_axis(table, grid[0]).swapaxes(0, 1)
  want = resize_axis(want, grid[1]).swapaxes(0, 1)
  got = resize_positions(jnp.asarray(table, jnp.float32), grid)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_its_own_size_is_returned_as_it_is():
  table = jnp.ones((2, 8, 1))
  assert resize_positions(table, (2, 8)) is table
  assert resize_positions(table, (4, 4)).shape == (4, 4, 1)


def test_a_table_of_bfloat16_is_resized_in_float32(rng):
  table = jnp.asarray(rng.normal(size=(5, 3, 2)), jnp.bfloat16)
  got = resize_positions(table, (7, 4))
  want = resize_positions(table.astype(jnp.float32), (7, 4)).astype(jnp.bfloat16)
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got.astype(jnp.float32), want.astype(jnp.float32))
