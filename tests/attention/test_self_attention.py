"""Self-attention against the loop, and what is peculiar to it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import Residual, SelfAttention, create_attention
from tests import oracles
from tests.proof import initial


def attended_by_loop(module, params, x):
  """One image [H, W, C] through projections and the loop oracle."""
  tokens = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
  heads = module.num_heads
  key_heads = module.num_key_heads or heads
  q, k, v = (oracles.dense(tokens, params[name]) for name in ('query', 'key', 'value'))
  q = q.reshape(len(tokens), heads, -1)
  k, v = (a.reshape(len(tokens), key_heads, -1) for a in (k, v))
  out = oracles.attend(q, k, v).reshape(*x.shape[:2], -1)
  return oracles.dense(out, params['out']) if 'out' in params else out


@pytest.mark.parametrize(
  'settings',
  [
    {'qk_features': 4, 'v_features': 6},
    {'num_heads': 4, 'num_key_heads': 2, 'qk_features': 8, 'out_features': 5},
    {'num_heads': 3, 'num_key_heads': 1, 'use_bias': False},
  ],
  ids=str,
)
@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-6), ('float64', 1e-12)])
def test_equals_the_loop(rng, settings, dtype, tolerance):
  module = SelfAttention(**settings)
  with jax.enable_x64(dtype == 'float64'):
    x = jnp.asarray(0.5 * rng.normal(size=(2, 3, 5, 12)), dtype)
    variables = initial(module, x)
    variables = jax.tree.map(lambda leaf: leaf.astype(dtype), variables)
    out = module.apply(variables, x, train=False).features
    assert out.dtype == dtype
    for b in range(2):
      want = attended_by_loop(module, variables['params'], x[b])
      np.testing.assert_allclose(out[b], want, atol=tolerance, rtol=0)


def test_parameters_of_the_seed():
  module = SelfAttention(qk_features=32, v_features=256)
  variables = initial(module, jnp.zeros((1, 2, 2, 256)))
  assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == 2 * 8224 + 65792


@pytest.mark.parametrize(
  ('channels', 'settings'),
  [
    (12, {'qk_features': 4}),
    (12, {'num_heads': 4, 'num_key_heads': 2, 'qk_features': 20}),
    (3, {'num_heads': 2, 'qk_features': 10}),
  ],
  ids=str,
)
def test_mimetic_query_and_key_start_as_each_other(channels, settings):
  """W_Q W_K^T of each head has the eigenvalue ``mimetic`` D times (at most C), else zero."""
  module = SelfAttention(**settings, v_features=8, mimetic=0.7, initialization='torch')
  params = initial(module, jnp.zeros((1, 2, 2, channels)))['params']
  heads, key_heads = module.num_heads, module.num_key_heads or module.num_heads
  q = np.split(np.asarray(params['query']['kernel'], np.float64), heads, axis=1)
  k = np.split(np.asarray(params['key']['kernel'], np.float64), key_heads, axis=1)
  for head in range(heads):
    product = q[head] @ k[head // (heads // key_heads)].T
    np.testing.assert_allclose(product, product.T, atol=1e-6)
    found = np.linalg.eigvalsh(product)
    rank = min(channels, q[head].shape[1])
    want = [0.0] * (channels - rank) + [0.7] * rank
    np.testing.assert_allclose(found, want, atol=1e-6)
  assert not np.allclose(k[0], k[-1]) or key_heads == 1
  assert not params['query']['bias'].any()
  assert not params['key']['bias'].any()
  assert params['value']['bias'].any()


def test_mimetic_is_above_zero():
  with pytest.raises(ValueError, match='mimetic=0 must be above zero'):
    initial(SelfAttention(mimetic=0), jnp.zeros((1, 2, 2, 4)))


def test_permuting_positions_permutes_the_output(rng):
  module = SelfAttention(num_heads=2)
  x = jnp.asarray(rng.normal(size=(1, 1, 6, 4)), jnp.float32)
  variables = initial(module, x)
  turned = rng.permutation(6)
  out = module.apply(variables, x, train=False).features
  np.testing.assert_allclose(
    module.apply(variables, x[:, :, turned], train=False).features, out[:, :, turned], atol=1e-6
  )


def test_a_position_that_nobody_attends_cannot_move_the_others(rng):
  # Keys of a position far against every query: its weight underflows to exactly zero.
  module = SelfAttention(qk_features=1, v_features=3, use_bias=False)
  x = np.abs(rng.normal(size=(1, 2, 3, 4))).astype(np.float32) + 0.5
  x = jnp.asarray(x).at[0, 1, 2].set(jnp.array([-1e4, 0, 0, 0]))
  variables = {
    'params': {
      'query': {'kernel': jnp.array([[0.0], [1.0], [1.0], [1.0]])},
      'key': {'kernel': jnp.array([[1.0], [0.0], [0.0], [0.0]])},
      'value': {'kernel': jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)},
    }
  }
  before = module.apply(variables, x, train=False)
  assert np.all(np.asarray(before.maps['weights'].weights)[0, 0, :5, 5] == 0)
  after = module.apply(variables, x.at[0, 1, 2, 1:].set(0.25), train=False)
  np.testing.assert_array_equal(before.features.reshape(6, 3)[:5], after.features.reshape(6, 3)[:5])


def test_heads_must_divide_widths():
  module = SelfAttention(num_heads=3, qk_features=4)
  with pytest.raises(ValueError, match='num_heads=3 must divide qk_features=4'):
    initial(module, jnp.zeros((1, 2, 2, 6)))


def test_residual_starts_as_the_exact_identity_and_passes_gradient_to_gamma(rng):
  module = Residual(create_attention('self_attention', num_heads=2))
  x = jnp.asarray(rng.normal(size=(2, 3, 5, 4)), jnp.float32)
  variables = initial(module, x)
  attended = module.apply(variables, x, train=False)
  np.testing.assert_array_equal(attended.features, x)
  assert attended.maps['weights'].weights.shape == (2, 2, 15, 15)
  gradient = jax.grad(lambda v: (module.apply(v, x, train=False).features ** 2).sum())(variables)
  assert np.abs(gradient['params']['gamma']).min() > 0


def test_residual_refuses_a_mechanism_that_changes_the_shape():
  module = Residual(SelfAttention(v_features=3))
  with pytest.raises(ValueError, match='keeps the shape'):
    initial(module, jnp.zeros((1, 2, 2, 4)))


def test_an_unknown_name_suggests_the_nearest():
  with pytest.raises(ValueError, match="'self_atention'; did you mean 'self_attention'"):
    create_attention('self_atention')
