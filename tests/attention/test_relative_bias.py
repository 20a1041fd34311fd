"""Self-attention with a bias for each difference of two positions."""

import jax.numpy as jnp
import numpy as np

from jattn.attention import SelfAttention, WindowAttention
from tests.local_oracles import attend, hold, pairs, project, run
from tests.proof import draw, variables_of


def oracle(module):
  def formula(p, x, train):
    grid = x.shape[1:3]
    down, right = (pairs(grid, lambda q, k, a=a: q[a] - k[a] + grid[a] - 1) for a in (0, 1))
    bias = np.moveaxis(p['relative_bias'][down, right], -1, 0)
    outs, maps = [], []
    for image in x:
      q, k, v = (project(p, image, name, module.num_heads) for name in ('query', 'key', 'value'))
      scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + bias
      out, weights = attend(scores, v, np.ones(down.shape, bool))
      outs.append(out.reshape(*grid, -1))
      maps.append(weights)
    return np.stack(outs), {'weights': np.stack(maps)}

  return formula


def test_equals_the_formula():
  module = SelfAttention(num_heads=3, v_features=6, relative_bias=True)
  hold(module, oracle(module))


def test_equals_a_window_that_covers_the_grid():
  x = draw((2, 4, 4, 6))
  window = WindowAttention(num_heads=2, window_size=4)
  params = dict(variables_of(window, x)['params'])
  want = run(window, {'params': params}, x)
  params['relative_bias'] = params['relative_bias'].reshape(7, 7, 2)
  module = SelfAttention(num_heads=2, out_features=6, relative_bias=True)
  got = run(module, {'params': params}, x)
  np.testing.assert_allclose(got.features, want.features, atol=1e-6)
  weights = want.maps['weights'].dense()
  np.testing.assert_allclose(got.maps['weights'].weights, weights, atol=1e-6)


def test_at_another_grid_the_bias_is_stretched():
  module = SelfAttention(use_bias=False, relative_bias=True)
  kernel = {'kernel': jnp.zeros((2, 2))}
  params = dict.fromkeys(('query', 'key', 'value'), kernel)
  params['relative_bias'] = jnp.array([-1.0, 0, 1]).reshape(1, 3, 1)
  found = run(module, {'params': params}, draw((1, 1, 3, 2))).maps['weights'].weights
  scores = np.exp(np.array([[0, -0.5, -1], [0.5, 0, -0.5], [1, 0.5, 0]]))
  np.testing.assert_allclose(found[0, 0], scores / scores.sum(1, keepdims=True), atol=1e-6)
