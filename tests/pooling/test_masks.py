"""What stands at masked positions is nobody's, and only a bool says which those are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.laws import POOLING_ROWS
from tests.proof import draw, variables_of

MASKABLE = {
  row.name: row.make()
  for row in POOLING_ROWS
  if 'mask' in type(row.make()).__call__.__wrapped__.__annotations__
}


@pytest.fixture(params=MASKABLE)
def pooled(request):
  """(features, mask) -> the vector of a pooling away from its start."""
  module, x = MASKABLE[request.param], draw()
  variables = variables_of(module, x)
  return lambda x, mask: module.apply(variables, x, train=False, mask=mask).vector


def test_most_poolings_take_a_mask():
  assert set(MASKABLE) >= {'average', 'max', 'weighted_average', 'class_attention', 'sim_pool'}


def test_neither_nan_nor_infinity_leaves_a_masked_position(pooled):
  mask = jnp.ones((2, 3, 5), bool).at[:, 2].set(False)
  x = draw()
  wild = x.at[:, 2, 0].set(jnp.nan).at[:, 2, 1].set(jnp.inf).at[:, 2, 2].set(-jnp.inf)
  value = jax.jit(lambda x: jax.value_and_grad(lambda x: (pooled(x, mask) ** 2).sum())(x))
  (want, want_slope), (got, slope) = value(x), value(wild)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  np.testing.assert_allclose(slope, want_slope, atol=1e-5)
  assert not np.asarray(slope)[:, 2].any()


def test_a_mask_of_numbers_is_refused(pooled):
  additive = jnp.zeros((2, 3, 5)).at[:, 2].set(-jnp.inf)
  with pytest.raises(ValueError, match='mask must be bool.* not float32'):
    jax.eval_shape(pooled, draw(), additive)
