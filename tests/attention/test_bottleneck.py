"""Attention with relative positions on two axes against the formula, and at another grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import BottleneckAttention
from tests.local_oracles import attend, hold, pairs, project, run
from tests.proof import draw, initial, variables_of


def oracle(module):
  def formula(p, x, train):
    grid, heads = x.shape[1:3], module.num_heads
    down, right = (pairs(grid, lambda q, k, a=axis: k[a] - q[a] + grid[a] - 1) for axis in (0, 1))
    outs, maps = [], []
    for image in x:
      q, k, v = (project(p, image, name, heads) for name in ('query', 'key', 'value'))
      scale = 1 / np.sqrt(q.shape[-1])
      position = np.einsum('mqd,qkd->mqk', q, p['rows'][down] + p['columns'][right])
      if module.variant == 'paper':
        position = position * scale
      out, weights = attend(scale * q @ k.swapaxes(1, 2) + position, v, np.ones(down.shape, bool))
      outs.append(out.reshape(image.shape))
      maps.append(weights)
    return np.stack(outs), {'weights': np.stack(maps)}

  return formula


@pytest.mark.parametrize(
  'settings', [{'num_heads': 2}, {'num_heads': 3, 'variant': 'timm'}], ids=str
)
def test_equals_the_formula(settings):
  module = BottleneckAttention(**settings)
  hold(module, oracle(module))


def test_tables_start_with_the_deviation_of_a_head():
  module = BottleneckAttention(num_heads=2)
  x = jnp.zeros((1, 40, 30, 32))
  params = initial(module, x[:, :4, :3])['params']
  assert (params['rows'].shape, params['columns'].shape) == ((7, 16), (5, 16))
  assert 0.2 < np.asarray(params['rows']).std() < 0.3  # 16 ** -0.5


def test_another_grid_interpolates_the_tables():
  """One key in each direction of one query: positions alone decide, and half way is half."""
  module = BottleneckAttention(num_heads=1, variant='timm')
  x = draw((1, 2, 1, 3))
  params = dict(variables_of(module, x)['params'])
  params['query'] = {'kernel': jnp.diag(jnp.array([0.0, 0.0, 1.0]))}
  params['key'] = {'kernel': jnp.zeros((3, 3))}
  params['rows'] = jnp.array([[0.0, 0, -1], [0, 0, 0], [0, 0, 1]])
  x = jnp.ones((1, 3, 1, 3))
  found = run(module, {'params': params}, x).maps['weights'].weights
  columns = np.exp(np.array([[0, 0.5, 1], [-0.5, 0, 0.5], [-1, -0.5, 0]]))
  np.testing.assert_allclose(found[0, 0], columns / columns.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 5}, 'num_heads=5 must divide C=12'),
    ({'variant': 'gist'}, "variant='gist' must be 'paper' or 'timm'"),
  ],
  ids=str,
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    BottleneckAttention(**settings).init(jax.random.key(0), draw(), train=False)
