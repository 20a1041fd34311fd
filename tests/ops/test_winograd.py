"""Winograd's convolution against sums of products in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops import winograd

ROOM = 1e-5  # of the largest output; XLA's own sums are off by 1e-6


def oracle(x, kernel, sides):
  """The definition: a loop over the window."""
  x, kernel = x.astype(np.float64), kernel.astype(np.float64)
  padded = np.pad(x, ((0, 0), *sides, (0, 0)))
  height, width = (padded.shape[axis] - 2 for axis in (1, 2))
  return sum(
    padded[:, i : i + height, j : j + width] @ kernel[i, j] for i in range(3) for j in range(3)
  )


def test_the_matrices_are_exact_for_every_input_and_kernel():
  a, g, b = winograd.matrices()
  found = np.einsum('in,nk,nd->idk', a, g, b)
  want = np.array([[[d == i + k for k in range(3)] for d in range(6)] for i in range(4)], float)
  np.testing.assert_allclose(found, want, atol=1e-13)


@pytest.mark.parametrize(
  ('shape', 'features', 'sides'),
  [
    ((2, 8, 12, 16), 24, ((1, 1), (1, 1))),
    ((1, 3, 5, 2), 3, ((0, 0), (0, 0))),
    ((3, 7, 6, 4), 2, ((2, 0), (0, 3))),
    ((2, 4, 4, 256), 8, ((1, 1), (1, 1))),
  ],
)
@pytest.mark.parametrize('offset', [0, 10])  # images are rarely centred
def test_values_are_those_of_the_definition(shape, features, sides, offset):
  rng = np.random.default_rng(0)
  x = (rng.normal(size=shape) + offset).astype(np.float32)
  kernel = rng.normal(size=(3, 3, shape[-1], features)).astype(np.float32)
  want = oracle(x, kernel, sides)
  transformed = winograd.transform_kernel(jnp.asarray(kernel))
  found = jax.jit(winograd.filter_images, static_argnums=(2, 3))(
    x, transformed, sides, want.shape[1:3]
  )
  np.testing.assert_allclose(found, want, rtol=0, atol=ROOM * np.abs(want).max())
