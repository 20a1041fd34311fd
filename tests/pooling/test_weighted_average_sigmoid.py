"""The weighted average with sigmoids in place of the softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.pooling import WeightedAverage
from tests import oracles
from tests.pooling.test_weighted_average import KINDS, make


@pytest.mark.parametrize('kind', KINDS)
def test_sigmoid_weights_equal_the_quotient(rng, kind):
  module = WeightedAverage(score=kind, hidden=6, num_maps=2, normalise='sigmoid')
  x, variables = make(rng, module)
  mask = np.ones((2, 3, 5), bool)
  mask[0, 1:, 2:] = False
  pooled = module.apply(variables, x, train=False, mask=jnp.asarray(mask))
  bias = np.asarray(variables['params']['score']['score']['bias'], float)
  for b in range(2):
    scores = oracles.score_map(np.asarray(x[b]), variables['params']['score'], kind)
    parts = mask[b] / (1 + np.exp(-(scores + bias[:, None, None])))
    weights = parts / parts.sum((1, 2), keepdims=True)
    np.testing.assert_allclose(pooled.maps['weights'].weights[b], weights, atol=1e-6)
    want = oracles.pooled(x[b], weights).reshape(-1)
    np.testing.assert_allclose(pooled.vector[b], want, atol=1e-6)


def test_sigmoid_weights_outlive_scores_that_underflow(rng):
  """Far below zero the sigmoid is an exponential, so the weights are those of the softmax."""
  module = WeightedAverage(normalise='sigmoid')
  x, variables = make(rng, module)
  kernel = variables['params']['score']['score']['kernel']
  low = {'params': {'score': {'score': {'kernel': kernel, 'bias': jnp.array([-1e3])}}}}
  soft = {'params': {'score': {'score': {'kernel': kernel}}}}
  np.testing.assert_allclose(
    module.apply(low, x, train=False).vector,
    WeightedAverage().apply(soft, x, train=False).vector,
    atol=1e-3,
  )
  with pytest.raises(ValueError, match="self.normalise='max' must be 'softmax' or 'sigmoid'"):
    WeightedAverage(normalise='max').init(jax.random.key(0), x, train=False)
