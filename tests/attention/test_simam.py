"""SimAM against the formula, and what it cannot do to an average."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import SimAM
from tests.layer_oracles import sigmoid
from tests.proof import draw, prove


def oracle(regularisation):
  def compute(p, x, train):
    del train
    assert not p
    gates = np.zeros(x.shape)
    for b in range(x.shape[0]):
      for c in range(x.shape[3]):
        t = x[b, :, :, c]
        spread = t.var(ddof=1 if t.size > 1 else 0)
        gates[b, :, :, c] = sigmoid((t - t.mean()) ** 2 / (4 * (spread + regularisation)) + 0.5)
    return x * gates, {'gate': gates}

  return compute


@pytest.mark.parametrize('regularisation', [1e-4, 0.1])
@pytest.mark.parametrize('shape', [(2, 3, 5, 4), (2, 1, 1, 4)])
def test_equals_the_formula(regularisation, shape):
  prove(SimAM(regularisation), oracle(regularisation), shape=shape)


def gates(x, **settings):
  return np.asarray(SimAM(**settings).apply({}, x, train=False).maps['gate'].weights)


def test_the_exponents_average_to_the_share_of_the_other_positions():
  """mean of d / (4 v) = (N - 1) / (4 N), whatever the features are."""
  weights = gates(draw((2, 3, 5, 4)), regularisation=1e-12)
  exponents = np.log(weights / (1 - weights)) - 0.5
  np.testing.assert_allclose(exponents.mean((1, 2)), 14 / 60, rtol=1e-5)


def test_neither_shift_nor_sign_of_the_features_counts():
  x = draw()
  np.testing.assert_allclose(gates(3 - x), gates(x), atol=1e-5)


def test_constant_features_have_one_gate():
  np.testing.assert_allclose(gates(jnp.full((1, 3, 5, 2), 7.0)), sigmoid(0.5), rtol=1e-6)


def test_what_is_refused():
  with pytest.raises(ValueError, match=r'regularisation=0 must be positive'):
    SimAM(0).apply({}, draw(), train=False)
