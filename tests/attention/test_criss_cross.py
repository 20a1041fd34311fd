"""Criss-cross attention against the formula, on lines, and twice over."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import CrissCrossAttention
from jattn.ops import attend
from tests.local_oracles import attend as attend_by_loop
from tests.local_oracles import hold, pairs, project, run
from tests.proof import draw, variables_of


def criss_cross(p, x, train):
  allowed = pairs(x.shape[1:3], lambda q, k: q[0] == k[0] or q[1] == k[1])
  outs, maps = [], []
  for image in x:
    q, k, v = (project(p, image, name, 1) for name in ('query', 'key', 'value'))
    out, weights = attend_by_loop(q @ k.swapaxes(1, 2), v, allowed)
    outs.append(out.reshape(image.shape))
    maps.append(weights)
  return np.stack(outs), {'weights': np.stack(maps)}


@pytest.mark.parametrize('reduction', [4, 8])
def test_equals_the_formula(reduction):
  hold(CrissCrossAttention(reduction=reduction), criss_cross)


def test_the_own_position_counts_once():
  x = draw((1, 3, 4, 8))
  module = CrissCrossAttention()
  variables = jax.tree.map(jnp.zeros_like, variables_of(module, x))
  found = run(module, variables, x).maps['weights']
  assert found.weights.shape == (1, 1, 12, 6)
  assert all(len(set(keys)) == 6 for keys in found.keys.tolist())
  np.testing.assert_allclose(found.weights, 1 / 6, atol=1e-6)
  assert found.keys[5].tolist() == [1, 5, 9, 4, 6, 7]


@pytest.mark.parametrize('shape', [(2, 1, 6, 8), (2, 6, 1, 8)])
def test_on_one_line_it_is_unscaled_global_attention(shape):
  x = draw(shape)
  module = CrissCrossAttention(reduction=2)
  variables = variables_of(module, x)

  def heads(name):
    p = variables['params'][name]
    return (x.reshape(2, 6, 8) @ p['kernel'] + p['bias'].reshape(1, 1, -1))[:, :, None]

  want = attend(heads('query'), heads('key'), heads('value'), scale=1.0).reshape(shape)
  np.testing.assert_allclose(run(module, variables, x).features, want, atol=1e-6)


def test_few_channels_still_have_a_query():
  variables = variables_of(CrissCrossAttention(), draw((1, 2, 2, 4)))
  assert variables['params']['query']['kernel'].shape == (4, 1)


def test_once_sees_a_cross_and_twice_sees_everything():
  x = draw((1, 3, 4, 8))
  module = CrissCrossAttention()
  variables = variables_of(module, x)
  once = jax.grad(lambda x: run(module, variables, x).features[0, 0, 0].sum())(x)
  assert not np.asarray(once[0, 1:, 1:]).any()

  def again(x):
    return run(module, variables, run(module, variables, x).features).features[0, 0, 0].sum()

  assert jnp.abs(jax.grad(again)(x)).max(axis=-1).min() > 0
