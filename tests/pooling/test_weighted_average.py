"""Weighted-average pooling and aggregation against the loop and their identities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops import global_average
from jattn.pooling import AttentionAggregate, Average, Max, WeightedAverage, create_pooling
from tests import oracles
from tests.proof import initial

KINDS = ['linear', 'tanh', 'gated']


def make(rng, module, dtype='float32'):
  x = jnp.asarray(rng.normal(size=(2, 3, 5, 4)), dtype)
  variables = initial(module, x)
  moved = jax.tree.map(lambda p: (p + 0.2 * rng.normal(size=p.shape)).astype(dtype), variables)
  return x, moved


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-6), ('float64', 1e-12)])
def test_equals_the_loop(rng, kind, dtype, tolerance):
  with jax.enable_x64(dtype == 'float64'):
    module = WeightedAverage(score=kind, hidden=6, num_maps=2)
    x, variables = make(rng, module, dtype)
    pooled = module.apply(variables, x, train=False)
    for b in range(2):
      scores = oracles.score_map(np.asarray(x[b]), variables['params']['score'], kind)
      weights = np.stack([oracles.softmax(s) for s in scores])
      got = pooled.maps['weights'].weights[b]
      np.testing.assert_allclose(got, weights, atol=tolerance, rtol=0)
      want = oracles.pooled(x[b], weights).reshape(-1)
      np.testing.assert_allclose(pooled.vector[b], want, atol=tolerance, rtol=0)


@pytest.mark.parametrize('kind', KINDS)
def test_masked_positions_get_exactly_zero_and_cannot_move_the_vector(rng, kind):
  module = WeightedAverage(score=kind, hidden=6)
  x, variables = make(rng, module)
  mask = np.ones((2, 3, 5), bool)
  mask[0, 1:, 2:] = False
  pooled = module.apply(variables, x, train=False, mask=jnp.asarray(mask))
  weights = np.asarray(pooled.maps['weights'].weights)[:, 0]
  assert np.all(weights[~mask] == 0)
  np.testing.assert_allclose(weights.sum((1, 2)), 1, atol=1e-6)
  noisy = jnp.where(jnp.asarray(mask)[..., None], x, 50.0)
  np.testing.assert_array_equal(
    module.apply(variables, noisy, train=False, mask=jnp.asarray(mask)).vector, pooled.vector
  )


@pytest.mark.parametrize('kind', KINDS)
def test_a_score_of_nothing_is_the_global_average(rng, kind):
  module = WeightedAverage(score=kind, hidden=6)
  x, variables = make(rng, module)
  zero = jax.tree.map(jnp.zeros_like, variables)
  np.testing.assert_allclose(
    module.apply(zero, x, train=False).vector, global_average(x), atol=1e-6
  )


def test_constant_features_come_through_any_weights(rng):
  module = WeightedAverage(score='gated', hidden=6)
  _, variables = make(rng, module)
  h = jnp.asarray(rng.normal(size=(2, 1, 1, 4)), jnp.float32)
  x = jnp.broadcast_to(h, (2, 3, 5, 4))
  np.testing.assert_allclose(module.apply(variables, x, train=False).vector, h[:, 0, 0], atol=1e-6)


def test_the_gate_and_the_content_layer_differ(rng):
  """Swapping V and U must change the score: tanh and sigmoid are not the same."""
  module = WeightedAverage(score='gated', hidden=6)
  x, variables = make(rng, module)
  params = variables['params']['score']
  swapped = {'params': {'score': params | {'gate': params['content'], 'content': params['gate']}}}
  got = module.apply(swapped, x, train=False).vector
  assert np.abs(got - module.apply(variables, x, train=False).vector).max() > 1e-3


def test_rescaled_uniform_aggregation_is_plain_pooling(rng):
  module = AttentionAggregate(reduce='both')
  x, variables = make(rng, module)
  zero = jax.tree.map(jnp.zeros_like, variables)
  vector = module.apply(zero, x, train=False).vector
  plain = [pool.apply({}, x, train=False).vector for pool in (Average(), Max())]
  np.testing.assert_allclose(vector, jnp.concatenate(plain, axis=-1), atol=1e-6)


def test_unscaled_average_aggregation_is_the_weighted_average_over_n(rng):
  aggregate = AttentionAggregate(reduce='average', rescale=False)
  x, variables = make(rng, aggregate)
  weighted = WeightedAverage().apply(variables, x, train=False).vector
  np.testing.assert_allclose(
    aggregate.apply(variables, x, train=False).vector, weighted / 15, atol=1e-6
  )


def test_unknown_names_and_scores_are_refused():
  with pytest.raises(ValueError, match="did you mean 'weighted_average'"):
    create_pooling('weighted_averge')
  with pytest.raises(ValueError, match="score='soft'"):
    WeightedAverage(score='soft').init(jax.random.key(0), jnp.zeros((1, 2, 2, 3)), train=False)
