"""Sequence pooling against the formula, and that it is the weighted average with a bias."""

import jax
import jax.numpy as jnp
import numpy as np

from jattn.pooling import SeqPool, WeightedAverage
from tests import oracles
from tests.proof import draw, prove, variables_of


def seq_pool(p, x, train):
  del train
  weights, out = [], []
  for image in x:
    scores = image @ p['score/kernel'][:, 0] + p['score/bias']
    weights.append(oracles.softmax(scores)[None])
    out.append((weights[-1][0][..., None] * image).sum((0, 1)))
  return np.stack(out), {'weights': np.stack(weights)}


def test_equals_the_formula():
  prove(SeqPool(), seq_pool)


def test_is_the_linear_weighted_average_whatever_its_bias():
  x = draw()
  variables = variables_of(SeqPool(), x)
  kernel = variables['params']['score']['kernel']
  mask = jnp.ones((2, 3, 5), bool).at[0, 1:, 2:].set(False).at[1].set(False)
  same = {'params': {'score': {'score': {'kernel': kernel}}}}
  want = WeightedAverage().apply(same, x, train=False, mask=mask)
  got = SeqPool().apply(variables, x, train=False, mask=mask)
  np.testing.assert_allclose(got.vector, want.vector, atol=1e-6)
  weights = np.asarray(got.maps['weights'].weights)
  np.testing.assert_allclose(weights, want.maps['weights'].weights, atol=1e-6)
  assert (weights[:, 0][~np.asarray(mask)] == 0).all()
  assert not got.vector[1].any()


def test_the_score_starts_as_the_framework_starts_it():
  x = jnp.zeros((1, 2, 2, 400))
  kernel = SeqPool(initialization='torch').init(jax.random.key(0), x, train=False)['params'][
    'score'
  ]
  bound = 400**-0.5
  assert 0.9 * bound < np.abs(kernel['kernel']).max() <= bound
  assert 0 < np.abs(kernel['bias']).max() <= bound
