"""Average and max together, generalised mean and log-sum-exp: formulas and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops import global_average, global_max
from jattn.pooling import AverageMax, GeneralisedMean, LogSumExp
from tests.proof import draw, initial, prove


def average_max(p, x, train):
  del p, train
  tokens = x.reshape(len(x), -1, x.shape[-1])
  return np.concatenate([tokens.mean(1), tokens.max(1)], axis=-1)


def generalised_mean(p, x, train):
  del train
  power = np.broadcast_to(p['p'], x.shape[-1:])
  out = np.zeros((len(x), x.shape[-1]))
  for b, c in np.ndindex(out.shape):
    values = np.maximum(x[b, :, :, c], 1e-6)
    out[b, c] = np.mean(values ** power[c]) ** (1 / power[c])
  return out


def log_sum_exp(sharpness):
  def oracle(p, x, train):
    del p, train
    tokens = x.reshape(len(x), -1, x.shape[-1])
    return np.log(np.mean(np.exp(sharpness * tokens), axis=1)) / sharpness

  return oracle


def test_average_and_max_equal_the_formula():
  def halves(p, x, train):
    return average_max(p, x, train).reshape(len(x), 2, -1).mean(1)

  prove(AverageMax(), average_max)
  prove(AverageMax(combine='mean'), halves)


@pytest.mark.parametrize('per_channel', [False, True])
def test_the_generalised_mean_equals_the_formula(per_channel):
  # The exponents drawn with this scale are away from zero, where 1 / p has no value.
  prove(GeneralisedMean(per_channel=per_channel), generalised_mean, scale=3)


@pytest.mark.parametrize('sharpness', [0.5, 5.0])
def test_log_sum_exp_equals_the_formula(sharpness):
  prove(LogSumExp(sharpness=sharpness), log_sum_exp(sharpness))


def test_the_exponent_starts_at_three_and_one_is_the_average():
  x = jnp.abs(draw()) + 0.1
  variables = GeneralisedMean().init(jax.random.key(0), x, train=False)
  np.testing.assert_array_equal(variables['params']['p'], [3])
  for power, limit, error in ((1, global_average(x), 1e-6), (1e4, global_max(x), 2e-3)):
    vector = GeneralisedMean(power=power).apply(
      {'params': {'p': jnp.array([power])}}, x, train=False
    )
    np.testing.assert_allclose(vector.vector, limit, atol=error)


def test_the_log_sum_exp_lies_between_the_average_and_the_maximum():
  x = draw()
  assert (LogSumExp().apply({}, x, train=False).vector > global_average(x)).all()
  assert (LogSumExp().apply({}, x, train=False).vector < global_max(x)).all()
  for sharpness, limit in ((1e-3, global_average(x)), (1e4, global_max(x))):
    vector = LogSumExp(sharpness=sharpness).apply({}, x, train=False).vector
    np.testing.assert_allclose(vector, limit, atol=1e-3)


@pytest.mark.parametrize(
  'module', [AverageMax(), GeneralisedMean(), LogSumExp()], ids=lambda m: type(m).__name__
)
def test_masked_positions_are_as_if_absent(module):
  x = draw()
  variables = initial(module, x)
  mask = jnp.ones((2, 3, 5), bool).at[:, 2].set(False).at[:, :, 4].set(False)
  got = module.apply(variables, x, train=False, mask=mask).vector
  np.testing.assert_allclose(
    got, module.apply(variables, x[:, :2, :4], train=False).vector, atol=1e-6
  )

  def loss(v, x):
    return module.apply(v, x, train=False, mask=jnp.zeros_like(mask)).vector.sum()

  value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables, x)
  assert value == 0
  assert all(not leaf.any() for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize(
  ('module', 'message'),
  [
    (AverageMax(combine='sum'), "self.combine='sum' must be"),
    (GeneralisedMean(power=0), 'self.power=0 must not be zero'),
    (GeneralisedMean(eps=0), 'self.eps=0 must be positive'),
    (LogSumExp(sharpness=0), 'self.sharpness=0 must be positive'),
  ],
)
def test_bad_settings_are_refused(module, message):
  with pytest.raises(ValueError, match=message):
    initial(module, jnp.zeros((1, 2, 2, 3)))
