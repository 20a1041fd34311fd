"""Token learner against the formula of each variant, and what a token is."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import TokenLearner
from tests.layer_oracles import convolve, sigmoid
from tests.oracles import softmax
from tests.proof import draw, prove, variables_of


def gelu(x):
  return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x, p):
  centred = x - x.mean(-1, keepdims=True)
  spread = np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
  return centred / spread * p['norm/scale'] + p['norm/bias']


def learned(p, x, train):
  hidden = gelu(layer_norm(x, p) @ p['reduce/kernel'] + p['reduce/bias'])
  scores = np.moveaxis(hidden @ p['expand/kernel'] + p['expand/bias'], -1, 1)
  weights = np.stack([[softmax(s) for s in image] for image in scores])
  tokens = np.zeros((len(x), 1, weights.shape[1], x.shape[-1]))
  for b, s, i, j in np.ndindex(weights.shape):
    tokens[b, 0, s] += weights[b, s, i, j] * x[b, i, j]
  return tokens, {'weights': weights}


def gated(reduce):
  def compute(p, x, train):
    y = layer_norm(x, p)
    for index in range(4):
      y = convolve(gelu(y) if index else y, p[f'conv_{index}/kernel'])
    gates = [sigmoid(y[..., s : s + 1]) for s in range(y.shape[-1])]
    tokens = np.stack([reduce(x * g, axis=(1, 2)) for g in gates], 1)[:, None]
    return tokens, {f'token_{s}': g for s, g in enumerate(gates)}

  return compute


def test_equals_the_formula():
  prove(TokenLearner(4, hidden=7), learned)


@pytest.mark.parametrize(('variant', 'reduce'), [('paper', np.mean), ('official', np.sum)])
def test_first_version_equals_its_formula(variant, reduce):
  prove(TokenLearner(3, variant=variant), gated(reduce))


def test_zero_scores_give_the_average_over_positions():
  module, x = TokenLearner(4), draw()
  params = variables_of(module, x)['params']
  params['expand'] = jax.tree.map(jnp.zeros_like, params['expand'])
  tokens = module.apply({'params': params}, x, train=False).features
  average = jnp.broadcast_to(x.mean((1, 2))[:, None, None], tokens.shape)
  np.testing.assert_allclose(tokens, average, atol=1e-6)


def test_the_order_of_the_positions_does_not_matter():
  """Not so for the first version, whose convolutions see neighbours."""
  x = draw()
  shuffled = x.reshape(2, 15, 12)[:, np.random.default_rng(0).permutation(15)].reshape(x.shape)

  def difference(module):
    variables = variables_of(module, x)
    a, b = (module.apply(variables, y, train=False).features for y in (x, shuffled))
    return float(jnp.abs(a - b).max())

  assert difference(TokenLearner(4)) < 1e-6
  assert difference(TokenLearner(4, variant='paper')) > 1e-4


def test_one_number_on_a_map_of_scores_changes_nothing():
  module, x = TokenLearner(4), draw()
  variables = variables_of(module, x)
  moved = jax.tree.map(lambda leaf: leaf, variables)
  moved['params']['expand']['bias'] = jnp.arange(4.0)
  a, b = (module.apply(v, x, train=False).features for v in (variables, moved))
  np.testing.assert_allclose(a, b, atol=1e-6)


def test_tokens_stand_in_a_row_whatever_the_grid():
  module = TokenLearner(5)
  variables = variables_of(module, draw())
  for grid in ((3, 5), (8, 2), (1, 1)):
    tokens = module.apply(variables, draw((2, *grid, 12)), train=False).features
    assert tokens.shape == (2, 1, 5, 12)


def test_another_variant_is_refused():
  with pytest.raises(ValueError, match="variant='v2' must be"):
    TokenLearner(variant='v2').init(jax.random.key(0), draw(), train=False)
