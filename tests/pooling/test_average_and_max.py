"""Average and max pooling hand their mask on."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.pooling import Average, Max
from tests.proof import draw


@pytest.mark.parametrize(('pool', 'reduce'), [(Average(), np.mean), (Max(), np.max)])
def test_masked_positions_take_no_part(pool, reduce):
  x, mask = draw(), np.zeros((2, 3, 5), bool)
  mask[:, 1:, 2:4] = True
  want = reduce(np.asarray(x)[:, 1:, 2:4], axis=(1, 2))
  got = pool.apply({}, x, train=False, mask=jnp.asarray(mask)).vector
  np.testing.assert_allclose(got, want, atol=1e-6)
