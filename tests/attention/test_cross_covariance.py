"""Cross-covariance attention against the formula of each variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import CrossCovarianceAttention
from tests.proof import draw, prove, variables_of


def oracle(num_heads, variant):
  def compute(p, x, train):
    batch, height, width, channels = x.shape
    each = channels // num_heads
    mixed, maps = np.zeros_like(x), np.zeros((batch, num_heads, each, each))
    for b, m in np.ndindex(batch, num_heads):
      columns = slice(m * each, (m + 1) * each)
      tokens = x[b].reshape(-1, channels)
      q, k, v = (
        tokens @ p[f'{name}/kernel'][:, columns]
        + p.get(f'{name}/bias', np.zeros(channels))[columns]
        for name in ('query', 'key', 'value')
      )
      tau = p['temperature'][m, 0, 0]
      for d in range(each):
        cosines = [
          q[:, d] @ k[:, e] / np.linalg.norm(q[:, d]) / np.linalg.norm(k[:, e]) for e in range(each)
        ]
        scores = np.exp(np.array(cosines) * (1 / tau if variant == 'paper' else tau))
        maps[b, m, d] = scores / scores.sum()
      mixed[b, :, :, columns] = (v @ maps[b, m].T).reshape(height, width, each)
    return mixed @ p['out/kernel'] + p['out/bias'], {'weights': maps}

  return compute


@pytest.mark.parametrize(
  'settings',
  [
    {'num_heads': 3, 'variant': 'official'},
    {'num_heads': 2, 'use_bias': False, 'variant': 'official'},
    {},
  ],
  ids=str,
)
def test_equals_the_formula(settings):
  module = CrossCovarianceAttention(**settings)
  prove(module, oracle(module.num_heads, module.variant))


def test_a_temperature_is_one_over_the_others():
  paper, official, x = (
    CrossCovarianceAttention(3),
    CrossCovarianceAttention(3, variant='official'),
    draw(),
  )
  params = variables_of(paper, x)['params']
  inverse = {**params, 'temperature': 1 / params['temperature']}
  np.testing.assert_allclose(
    paper.apply({'params': params}, x, train=False).features,
    official.apply({'params': inverse}, x, train=False).features,
    atol=1e-6,
  )


def test_the_size_of_queries_and_keys_and_the_order_of_positions_do_not_matter(rng):
  module, x = CrossCovarianceAttention(2, use_bias=False), draw()
  params = variables_of(module, x)['params']
  out = module.apply({'params': params}, x, train=False)
  scaled = {**params, 'query': {'kernel': 7 * params['query']['kernel']}}
  again = module.apply({'params': scaled}, x, train=False)
  np.testing.assert_allclose(again.features, out.features, atol=1e-6)
  order = rng.permutation(5)
  turned = module.apply({'params': params}, x[:, :, order], train=False)
  np.testing.assert_allclose(turned.features, out.features[:, :, order], atol=1e-6)
  np.testing.assert_allclose(turned.maps['weights'].weights, out.maps['weights'].weights, atol=1e-6)


def test_a_channel_that_is_zero_everywhere_has_a_finite_gradient():
  module, x = CrossCovarianceAttention(2, use_bias=False), jnp.zeros((1, 2, 3, 4))
  variables = variables_of(module, x)

  @jax.jit
  def loss(variables, x):
    returned = module.apply(variables, x, train=False)
    return returned.features.sum(), returned

  gradient, returned = jax.grad(loss, (0, 1), has_aux=True)(variables, x)
  for leaf in jax.tree.leaves(gradient):
    assert np.isfinite(leaf).all()
  np.testing.assert_array_equal(returned.maps['weights'].weights, 0.5)


def test_temperatures_start_at_one():
  params = CrossCovarianceAttention(3).init(jax.random.key(0), draw(), train=False)['params']
  np.testing.assert_array_equal(params['temperature'], np.ones((3, 1, 1)))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 3}, 'num_heads=3 must divide C=4'),
    ({'variant': 'timm'}, "variant='timm' must be 'paper' or 'official'"),
  ],
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    CrossCovarianceAttention(**settings).init(
      jax.random.key(0), jnp.zeros((1, 2, 2, 4)), train=False
    )
