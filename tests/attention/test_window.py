"""Window attention against the formula, global attention, and its own smaller windows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import WindowAttention
from jattn.ops import attend, relative_index
from tests.local_oracles import attend as attend_by_loop
from tests.local_oracles import hold, pairs, project, run
from tests.proof import draw, initial, variables_of


def oracle(module):
  size, heads, span = module.window_size, module.num_heads, 2 * module.window_size - 1

  def formula(p, x, train):
    grid = x.shape[1:3]
    shift = [module.shift if length > size else 0 for length in grid]

    def together(q, k):
      return all((a - s) // size == (b - s) // size for a, b, s in zip(q, k, shift, strict=True))

    def difference(q, k):
      sign = 1 if module.variant == 'swin' else -1
      down, right = (sign * (a - b) + size - 1 for a, b in zip(q, k, strict=True))
      return (down * span + right) if together(q, k) else 0

    allowed, index = pairs(grid, together), pairs(grid, difference)
    table = p['relative_bias'].T if module.variant == 'swin' else p['relative_bias_tf']
    bias = table.reshape(heads, -1)[:, index]
    outs, maps = [], []
    for image in x:
      q, k, v = (project(p, image, name, heads) for name in ('query', 'key', 'value'))
      scores = q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]) + bias
      out, weights = attend_by_loop(scores, v, allowed)
      outs.append((out @ p['out/kernel'] + p['out/bias']).reshape(image.shape))
      maps.append(weights)
    return np.stack(outs), {'weights': np.stack(maps)}

  return formula


@pytest.mark.parametrize(
  'settings',
  [
    {'num_heads': 2, 'window_size': 2},
    {'num_heads': 3, 'window_size': 3, 'shift': 1, 'use_bias': False},
    {'num_heads': 2, 'window_size': 2, 'shift': 1, 'variant': 'tf'},
    {'num_heads': 1, 'window_size': 4, 'shift': 3, 'variant': 'tf'},
  ],
  ids=str,
)
def test_equals_the_formula(settings):
  module = WindowAttention(**settings)
  hold(module, oracle(module))


def test_the_corners_of_the_grid_share_a_window_and_see_themselves_alone():
  module, x = WindowAttention(num_heads=2, window_size=2, shift=1), draw((1, 4, 6, 6))
  variables = variables_of(module, x)
  weights = run(module, variables, x).maps['weights'].dense()
  for corner in (0, 5, 18, 23):
    np.testing.assert_array_equal(weights[0, :, corner], np.eye(24)[[corner, corner]])


@pytest.mark.parametrize(('variant', 'name'), [('swin', 'bias'), ('tf', 'bias_tf')])
def test_the_table_starts_small(variant, name):
  module = WindowAttention(num_heads=4, window_size=9, variant=variant)
  variables = initial(module, draw((1, 2, 2, 4)))
  assert np.std(variables['params'][f'relative_{name}']) == pytest.approx(0.02, rel=0.1)


def test_a_window_that_covers_the_grid_is_global_attention_with_that_bias():
  module = WindowAttention(num_heads=2, window_size=5, shift=2)
  x = draw((2, 5, 5, 6))
  variables = variables_of(module, x)
  p = variables['params']
  table = p['relative_bias'][relative_index((5, 5), sign='query-key')]

  def heads(name):
    out = x.reshape(2, 25, 6) @ p[name]['kernel'] + p[name]['bias'].reshape(1, 1, -1)
    return out.reshape(2, 25, 2, 3)

  want = attend(heads('query'), heads('key'), heads('value'), bias=jnp.moveaxis(table, -1, 0))
  want = want.reshape(2, 5, 5, 6) @ p['out']['kernel'] + p['out']['bias'].reshape(1, 1, 1, -1)
  got = run(module, variables, x).features
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_the_map_is_as_small_as_the_window_and_says_which_positions_it_means():
  module = WindowAttention(num_heads=2, window_size=2, shift=1)
  x = draw((1, 3, 5, 12))
  found = run(module, variables_of(module, x), x).maps['weights']
  assert found.weights.shape == (1, 2, 15, 4)
  assert found.keys.dtype == jnp.int32
  # The corner is alone in its window, which holds three positions from across the grid too.
  keys = np.asarray(found.keys)
  assert sorted(keys[6].tolist()) == [6, 7, 11, 12]
  assert np.all(np.asarray(found.weights)[:, :, 0, keys[0] != 0] == 0)
  np.testing.assert_allclose(found.dense().sum(-1), 1, atol=1e-6)


def test_another_window_cannot_move_the_output():
  module = WindowAttention(num_heads=2, window_size=2)
  x = draw((1, 4, 4, 6))
  variables = variables_of(module, x)
  moved = jax.grad(lambda x: run(module, variables, x).features[0, :2, :2].sum())(x)
  assert np.abs(moved[0, :2, :2]).min() > 0
  assert not np.asarray(moved[0, 2:]).any()
  assert not np.asarray(moved[0, :, 2:]).any()


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 5}, 'num_heads=5 must divide C=12'),
    ({'window_size': 2, 'shift': 2}, r'shift=2 must be in 0\.\.1'),
    ({'window_size': 2, 'shift': -1}, 'shift=-1 must be in'),
    ({'variant': 'timm'}, "variant='timm' must be 'swin' or 'tf'"),
  ],
  ids=str,
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    WindowAttention(**settings).init(jax.random.key(0), draw(), train=False)
