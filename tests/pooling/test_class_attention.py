"""Class attention against the formula, and what its map leaves out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.pooling import ClassAttention
from tests import oracles
from tests.proof import draw, prove, variables_of


def class_attention(num_heads):
  def oracle(p, x, train):
    del train
    out, maps = [], []
    for image in x:
      z = np.concatenate([p['token'][0], image.reshape(-1, x.shape[-1])])
      q, k, v = (
        (t @ p[f'{name}/kernel'] + p.get(f'{name}/bias', 0)).reshape(len(t), num_heads, -1)
        for name, t in (('query', z[:1]), ('key', z), ('value', z))
      )
      out.append(oracles.attend(q, k, v).reshape(-1) @ p['out/kernel'] + p['out/bias'])
      a = oracles.attention_weights(q, k)[:, 0, 1:]
      maps.append((a / a.sum(1, keepdims=True)).reshape(num_heads, *x.shape[1:3]))
    return np.array(out), {'weights': np.array(maps)}

  return oracle


@pytest.mark.parametrize('settings', [{}, {'out_features': 7, 'use_bias': False}], ids=str)
def test_equals_the_formula(settings):
  prove(ClassAttention(3, **settings), class_attention(3))


def test_where_the_token_keeps_all_the_map_still_says_where_the_rest_is():
  """The positions' weights underflow, and a quotient of them would be 0 / 0."""
  module, x = ClassAttention(1, use_bias=False), draw((1, 2, 2, 4), seed=3)
  layer = {'kernel': 20 * jnp.eye(4)}
  params = {'token': jnp.full((1, 1, 4), 3.0), 'query': layer, 'key': layer, 'value': layer}
  params['out'] = {'kernel': jnp.eye(4), 'bias': jnp.zeros(4)}
  pooled = module.apply({'params': params}, x, train=False)
  np.testing.assert_allclose(pooled.vector, [[60] * 4], atol=1e-4)
  weights = np.asarray(pooled.maps['weights'].weights)
  np.testing.assert_allclose(weights.sum(), 1, atol=1e-6)
  assert weights.argmax() == np.asarray(x).sum(-1).argmax()


def test_masked_positions_get_zero_and_an_image_of_them_only_the_token():
  module, x = ClassAttention(3), draw()
  variables = variables_of(module, x)
  mask = jnp.ones((2, 3, 5), bool).at[0, 1:, 2:].set(False).at[1].set(False)
  apply = jax.jit(module.apply, static_argnames='train')
  pooled = apply(variables, x, train=False, mask=mask)
  weights = np.asarray(pooled.maps['weights'].weights)
  assert (weights.transpose(0, 2, 3, 1)[~np.asarray(mask)] == 0).all()
  np.testing.assert_allclose(weights[0].sum((1, 2)), 1, atol=1e-6)
  noisy = jnp.where(mask[..., None], x, 50.0)
  again = apply(variables, noisy, train=False, mask=mask)
  np.testing.assert_array_equal(again.vector, pooled.vector)
  p = variables['params']
  value = p['token'][0] @ p['value']['kernel'] + p['value']['bias'][None]
  alone = value @ p['out']['kernel'] + p['out']['bias'][None]
  np.testing.assert_allclose(pooled.vector[1:], alone, atol=1e-6)


def test_heads_that_do_not_divide_are_refused():
  with pytest.raises(ValueError, match='self.num_heads=5 must divide C=12'):
    ClassAttention(5).init(jax.random.key(0), draw(), train=False)
