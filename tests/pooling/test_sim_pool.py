"""SimPool against the formula, and what the shift and the exponent do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.pooling import SimPool
from tests import oracles
from tests.proof import draw, prove, variables_of


def sim_pool(num_heads, gamma):
  def oracle(p, x, train):
    del train
    out, maps = np.zeros((len(x), x.shape[-1])), []
    for b, image in enumerate(x):
      tokens = image.reshape(-1, x.shape[-1])
      query = tokens.mean(0) @ p['query/kernel']
      spread = np.sqrt(tokens.var(-1, keepdims=True) + 1e-6)
      values = (tokens - tokens.mean(-1, keepdims=True)) / spread * p['norm/scale'] + p['norm/bias']
      keys = values @ p['key/kernel']
      maps.append([])
      for head in np.split(np.arange(x.shape[-1]), num_heads):
        a = oracles.softmax(keys[:, head] @ query[head] / np.sqrt(len(head)))
        maps[-1].append(a.reshape(x.shape[1:3]))
        if gamma is None:
          out[b, head] = a @ values[:, head]
        else:
          shifted = values[:, head] - values.min() + 1e-6
          out[b, head] = (a @ shifted**gamma) ** (1 / gamma)
    return out, {'weights': np.array(maps)}

  return oracle


@pytest.mark.parametrize(('num_heads', 'gamma'), [(1, 2.0), (3, 1.25), (2, None), (1, 9.0)])
def test_equals_the_formula(num_heads, gamma):
  prove(SimPool(num_heads=num_heads, gamma=gamma), sim_pool(num_heads, gamma))


@pytest.mark.parametrize('gamma', [2.0, None])
def test_masked_positions_are_as_if_absent(gamma):
  module, x = SimPool(num_heads=2, gamma=gamma), draw()
  variables = variables_of(module, x)
  # The least number of all stands where nobody may look.
  x = x.at[:, 2, 0, 0].set(-50)
  mask = jnp.ones((2, 3, 5), bool).at[:, 2].set(False).at[:, :, 4].set(False)
  apply = jax.jit(module.apply, static_argnames='train')
  got = apply(variables, x, train=False, mask=mask)
  want = apply(variables, x[:, :2, :4], train=False)
  np.testing.assert_allclose(got.vector, want.vector, atol=1e-6)
  weights = np.asarray(got.maps['weights'].weights)
  np.testing.assert_allclose(weights[:, :, :2, :4], want.maps['weights'].weights, atol=1e-6)
  assert (weights[:, :, 2] == 0).all()


@pytest.mark.parametrize('gamma', [2.0, None])
def test_an_image_that_is_all_masked_gives_zeros_and_no_nan(gamma):
  module, x = SimPool(gamma=gamma), draw()
  mask = jnp.zeros((2, 3, 5), bool)

  def loss(variables, x):
    return module.apply(variables, x, train=False, mask=mask).vector.sum()

  value, gradient = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(variables_of(module, x), x)
  assert value == 0
  assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_gamma_one_is_the_shifted_plain_average():
  x = draw()
  variables = variables_of(SimPool(), x)
  plain, shifted = (
    SimPool(gamma=gamma).apply(variables, x, train=False).vector for gamma in (None, 1.0)
  )
  shift = np.asarray(shifted - plain)
  np.testing.assert_allclose(shift, np.broadcast_to(shift[:, :1], shift.shape), atol=1e-6)
  assert (shift > 0).all()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 5}, 'self.num_heads=5 must divide C=12'),
    ({'gamma': 0}, 'self.gamma=0 must not'),
  ],
)
def test_bad_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    SimPool(**settings).init(jax.random.key(0), draw(), train=False)


@pytest.mark.parametrize('gamma', [2.0, 7.0, 40.0])
def test_equal_features_have_a_value_and_a_gradient(gamma):
  """All values are ``eps`` then, and ``eps**7`` is no float32."""
  module, x = SimPool(gamma=gamma), jnp.ones((1, 1, 2, 4))
  variables = jax.jit(lambda: module.init(jax.random.key(0), x, train=False))()
  vector = jax.jit(lambda x: module.apply(variables, x, train=False).vector)
  np.testing.assert_allclose(vector(x), 1e-6, rtol=1e-4)
  assert np.isfinite(jax.grad(lambda x: vector(x).sum())(x)).all()


def test_what_keeps_values_positive_must_be_positive():
  with pytest.raises(ValueError, match='self.eps=0.0 must be positive'):
    SimPool(eps=0.0).init(jax.random.key(0), draw(), train=False)


@pytest.mark.parametrize('gamma', [2.0, None])
def test_nan_is_not_hidden(gamma):
  module, x = SimPool(gamma=gamma), draw()
  out = module.apply(variables_of(module, x), x.at[0, 1, 2, 3].set(jnp.nan), train=False)
  assert np.isnan(out.vector[0]).any()
  assert np.isfinite(out.vector[1]).all()
