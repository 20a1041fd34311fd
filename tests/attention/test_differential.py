"""Differential attention against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import DifferentialAttention
from tests.proof import draw, initial, prove, variables_of


def softmax(scores):
  weights = np.exp(scores - scores.max(-1, keepdims=True))
  return weights / weights.sum(-1, keepdims=True)


def oracle(num_heads, start):
  def compute(p, x, train):
    channels = x.shape[-1]
    tokens = x.reshape(len(x), -1, channels)
    d = channels // num_heads // 2
    q, k, v = (
      tokens @ p[f'{name}/kernel'] + p.get(f'{name}/bias', 0) for name in ('query', 'key', 'value')
    )
    first, second = (np.exp(p[f'lambda_q{i}'] @ p[f'lambda_k{i}']) for i in (1, 2))
    heads, maps = [], {'weights': [], 'subtracted': []}
    for m in range(num_heads):
      pair = []
      for s, found in enumerate(maps.values()):
        columns = slice((2 * m + s) * d, (2 * m + s + 1) * d)
        a = softmax(q[..., columns] @ k[..., columns].swapaxes(1, 2) / np.sqrt(d))
        found.append(a)
        pair.append(a)
      table = pair[0] - (first - second + start) * pair[1]
      out = table @ v[..., 2 * m * d : 2 * (m + 1) * d]
      out /= np.sqrt((out**2).mean(-1, keepdims=True) + 1e-5)
      heads.append((1 - start) * out * p['norm/scale'])
    out = np.concatenate(heads, -1) @ p['out/kernel'] + p.get('out/bias', 0)
    return out.reshape(x.shape), {name: np.stack(found, 1) for name, found in maps.items()}

  return compute


@pytest.mark.parametrize(
  ('settings', 'start'),
  [
    ({'num_heads': 3}, 0.2),
    ({'num_heads': 2, 'depth': 3, 'use_bias': True}, 0.8 - 0.6 * np.exp(-0.9)),
  ],
  ids=str,
)
def test_equals_the_formula(settings, start):
  prove(DifferentialAttention(**settings), oracle(settings['num_heads'], start))


def test_equal_maps_leave_the_direction_of_one():
  """A - lambda A = (1 - lambda) A, and the norm takes the factor away, but for its epsilon."""
  module, x = DifferentialAttention(2), draw()
  params = variables_of(module, x)['params']
  for name in ('query', 'key'):
    pairs = params[name]['kernel'].reshape(12, 2, 2, 3)
    kernel = jnp.broadcast_to(pairs[:, :, :1], pairs.shape).reshape(12, 12)
    params[name] = {'kernel': kernel}
  params['value'] = {'kernel': 100 * params['value']['kernel']}
  out = module.apply({'params': params}, x, train=False)
  np.testing.assert_array_equal(out.maps['weights'].weights, out.maps['subtracted'].weights)
  zeros = {name: jnp.zeros(3) for name in ('lambda_q1', 'lambda_k1', 'lambda_q2', 'lambda_k2')}
  again = module.apply({'params': {**params, **zeros}}, x, train=False)
  np.testing.assert_allclose(again.features, out.features, atol=1e-5)


def test_vectors_of_lambda_start_small_and_alike_in_any_initialization():
  module, x = DifferentialAttention(initialization='torch'), jnp.zeros((1, 1, 1, 4000))
  init = jax.jit(lambda: {**module.init(jax.random.key(0), x, train=False)['params']}['lambda_q1'])
  vector = init()
  assert vector.shape == (2000,)
  np.testing.assert_allclose(vector.std(), 0.1, rtol=0.05)
  np.testing.assert_allclose(vector.mean(), 0, atol=0.01)


def test_heads_must_divide_half_of_the_channels():
  module = DifferentialAttention(num_heads=2)
  with pytest.raises(ValueError, match=r'twice self.num_heads=2 must divide C=6'):
    initial(module, jnp.zeros((1, 2, 2, 6)))
