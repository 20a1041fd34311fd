"""Axial attention against the formula, and what one layer alone can see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import AxialAttention, SelfAttention
from tests.local_oracles import attend, hold, pairs, project, run
from tests.proof import draw, variables_of


def oracle(module):
  def formula(p, x, train):
    grid = x.shape[1:3]
    maps = {'column': [], 'row': []}
    outs = []
    for image in x:
      for name, axis in (('column', 1), ('row', 0)):
        allowed = pairs(grid, lambda q, k, a=axis: q[a] == k[a])
        q, k, v = (
          project(p, image, f'{name}_{part}', module.num_heads)
          for part in ('query', 'key', 'value')
        )
        out, weights = attend(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]), v, allowed)
        image = (out @ p[f'{name}_out/kernel']).reshape(image.shape)
        maps[name].append(weights)
      outs.append(image)
    return np.stack(outs), {name: np.stack(found) for name, found in maps.items()}

  return formula


@pytest.mark.parametrize('settings', [{'num_heads': 3}, {'num_heads': 2}], ids=str)
def test_equals_the_formula(settings):
  module = AxialAttention(**settings)
  hold(module, oracle(module))


def test_maps_are_as_long_as_a_line():
  x = draw((1, 3, 5, 4))
  module = AxialAttention(num_heads=2)
  maps = run(module, variables_of(module, x), x).maps
  assert maps['column'].weights.shape == (1, 2, 15, 3)
  assert maps['row'].weights.shape == (1, 2, 15, 5)
  assert maps['column'].keys[7].tolist() == [2, 7, 12]
  assert maps['row'].keys[7].tolist() == [5, 6, 7, 8, 9]


def test_on_a_single_column_the_first_layer_is_self_attention_and_the_second_linear():
  x = draw((2, 6, 1, 4))
  module = AxialAttention(num_heads=2)
  p = variables_of(module, x)['params']
  first = {name: p[f'column_{name}'] for name in ('query', 'key', 'value', 'out')}
  attended = run(SelfAttention(2, out_features=4, use_bias=False), {'params': first}, x).features
  want = attended @ p['row_value']['kernel'] @ p['row_out']['kernel']
  np.testing.assert_allclose(run(module, {'params': p}, x).features, want, atol=1e-6)


def test_two_layers_see_everything():
  x = draw((1, 3, 4, 4))
  module = AxialAttention(num_heads=1)
  variables = variables_of(module, x)
  moved = jax.grad(lambda x: run(module, variables, x).features[0, 0, 0].sum())(x)
  assert jnp.abs(moved).max(axis=-1).min() > 0


def test_heads_must_divide_channels():
  with pytest.raises(ValueError, match='num_heads=5 must divide C=12'):
    AxialAttention(num_heads=5).init(jax.random.key(0), draw(), train=False)
