"""Separable self-attention against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import SeparableAttention
from tests.proof import draw, prove, variables_of


def oracle(p, x, train):
  channels = x.shape[-1]
  out, maps = np.zeros_like(x), np.zeros((len(x), 1, *x.shape[1:3]))
  for b, image in enumerate(x):
    projected = image @ p['qkv/kernel'] + p.get('qkv/bias', 0)
    scores = np.exp(projected[..., 0])
    maps[b, 0] = scores / scores.sum()
    context = np.zeros(channels)
    for position in np.ndindex(image.shape[:2]):
      context += maps[b, 0][position] * projected[position][1 : 1 + channels]
    values = np.maximum(projected[..., 1 + channels :], 0)
    out[b] = values * context @ p['out/kernel'] + p.get('out/bias', 0)
  return out, {'weights': maps}


@pytest.mark.parametrize('use_bias', [True, False])
def test_equals_the_formula(use_bias):
  prove(SeparableAttention(use_bias), oracle)


def test_the_bias_of_the_scores_has_no_gradient():
  module, x = SeparableAttention(), draw()
  params = variables_of(module, x)['params']

  def loss(params):
    return (module.apply({'params': params}, x, train=False).features * draw(seed=3)).sum()

  bias = jax.grad(loss)(params)['qkv']['bias']
  np.testing.assert_allclose(bias[0], 0, atol=1e-6)
  assert np.abs(bias[1:]).max(initial=0) > 1e-3
  assert np.abs(bias[1:]).min() > 0


def test_equal_scores_make_the_context_the_mean_key():
  module, x = SeparableAttention(use_bias=False), draw()
  params = variables_of(module, x)['params']
  kernel = params['qkv']['kernel'].at[:, 0].set(0)
  returned = module.apply({'params': {**params, 'qkv': {'kernel': kernel}}}, x, train=False)
  np.testing.assert_allclose(returned.maps['weights'].weights, 1 / 15, rtol=1e-6)
  context = (x @ kernel[:, 1:13]).mean(axis=(1, 2), keepdims=True)
  want = (jnp.maximum(x @ kernel[:, 13:], 0) * context) @ params['out']['kernel']
  np.testing.assert_allclose(returned.features, want, atol=1e-6)


def test_a_position_without_weight_changes_its_own_output_only():
  """Its score is so far below the others' that its weight is exactly zero."""
  module, x = SeparableAttention(use_bias=False), draw().at[:, 1, 2, 0].set(-1e3)
  params = variables_of(module, x)['params']
  kernel = params['qkv']['kernel'].at[:, 0].set(0).at[0, 0].set(1)
  params = {**params, 'qkv': {'kernel': kernel}}
  before = module.apply({'params': params}, x, train=False)
  np.testing.assert_array_equal(before.maps['weights'].weights[:, 0, 1, 2], 0)
  after = module.apply({'params': params}, x.at[:, 1, 2, 1:].add(1), train=False)
  changed = np.abs(np.asarray(after.features - before.features)).max(axis=(0, 3)) > 0
  assert changed[1, 2]
  assert changed.sum() == 1
