"""Linear attention against the explicit table of similarities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import LinearAttention
from tests.proof import draw, flat, initial, prove, variables_of


def oracle(num_heads):
  """The kernel form: every pair's similarity written out, then a mean over the keys."""

  def compute(p, x, train):
    batch, height, width, _ = x.shape
    positions = height * width

    def project(name, x):
      return x @ p[f'{name}/kernel'] + p.get(f'{name}/bias', 0)

    def heads(name):
      return project(name, x).reshape(batch, positions, num_heads, -1)

    def feature(t):
      return np.where(t > 0, t + 1, np.exp(np.minimum(t, 0)))

    q, k, v = feature(heads('query')), feature(heads('key')), heads('value')
    table = np.zeros((batch, num_heads, positions, positions))
    out = np.zeros_like(v)
    for b, m, i in np.ndindex(batch, num_heads, positions):
      similarity = [q[b, i, m] @ k[b, j, m] for j in range(positions)]
      table[b, m, i] = similarity / np.sum(similarity)
      out[b, i, m] = table[b, m, i] @ v[b, :, m]
    out = out.reshape(batch, height, width, -1)
    return project('out', out) if 'out/kernel' in p else out, {'weights': table}

  return compute


@pytest.mark.parametrize(
  'settings',
  [
    {'num_heads': 3},
    {'num_heads': 2, 'qk_features': 6, 'v_features': 4, 'out_features': 5},
    {'qk_features': 1, 'use_bias': False},
  ],
  ids=str,
)
def test_equals_the_kernel_form(settings):
  prove(LinearAttention(**settings), oracle(settings.get('num_heads', 1)))


def test_features_that_underflow_still_have_weights():
  """At -300 the feature is e^-300: zero in float32, while the weights are of order one."""
  module, x = LinearAttention(num_heads=4, out_features=2), draw()
  variables = variables_of(module, x)
  params = variables['params']
  for name in ('query', 'key'):
    params[name]['bias'] = params[name]['bias'] - 300
  returned = module.apply(variables, x, train=False)
  features, maps = oracle(4)(flat(variables), np.asarray(x, np.float64), False)
  # Logarithms of -300 are rounded to 3e-5.
  np.testing.assert_allclose(returned.maps['weights'].weights, maps['weights'], atol=1e-4)
  np.testing.assert_allclose(returned.features, features, atol=1e-4)


def test_the_table_of_pairs_costs_nothing_unless_it_is_read():
  module, x = LinearAttention(num_heads=2), draw((1, 3, 7, 4))
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))

  def compiled(read):
    apply = jax.jit(lambda v, x: read(module.apply(v, x, train=False)))
    return apply.lower(variables, x).compile().as_text()

  assert '21,21]' in compiled(lambda attended: attended)
  assert '21,21]' not in compiled(lambda attended: attended.features)


def test_a_constant_feature_is_plain_averaging():
  module, x = LinearAttention(), draw()
  variables = variables_of(module, x)
  variables['params']['query']['kernel'] *= 0
  variables['params']['key']['kernel'] *= 0
  returned = module.apply(variables, x, train=False)
  np.testing.assert_allclose(returned.maps['weights'].weights, 1 / 15, rtol=1e-6)


@pytest.mark.parametrize('width', ['qk_features', 'v_features'])
def test_heads_must_divide_widths(width):
  module = LinearAttention(**{'num_heads': 3, width: 4})
  with pytest.raises(ValueError, match=f'num_heads=3 must divide {width}=4'):
    initial(module, jnp.zeros((1, 2, 2, 6)))
