"""Global context against the formula, and where it starts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import GlobalContext
from tests.layer_oracles import sigmoid
from tests.proof import draw, initial, prove, variables_of


def oracle(fuse, epsilon):
  def compute(p, x, train):
    del train
    out, weights, gates = np.zeros(x.shape), [], []
    for image, result in zip(x, out, strict=True):
      h = image.reshape(-1, image.shape[-1])
      exponentials = np.exp(h @ p['score/kernel'][:, 0] + p['score/bias'])
      alpha = exponentials / exponentials.sum()
      context = sum(a * row for a, row in zip(alpha, h, strict=True))
      u = context @ p[f'{fuse}_reduce/kernel'] + p[f'{fuse}_reduce/bias']
      u = (u - u.mean()) / np.sqrt(((u - u.mean()) ** 2).mean() + epsilon)
      u = np.maximum(u * p[f'{fuse}_norm/scale'] + p[f'{fuse}_norm/bias'], 0)
      t = u @ p[f'{fuse}_expand/kernel'] + p[f'{fuse}_expand/bias']
      result[:] = image + t if fuse == 'add' else image * sigmoid(t)
      weights.append(alpha.reshape(1, *image.shape[:2]))
      gates.append(sigmoid(t)[None, None])
    maps = {'weights': np.stack(weights)}
    return out, maps if fuse == 'add' else maps | {'gate': np.stack(gates)}

  return compute


@pytest.mark.parametrize('fuse', ['add', 'multiply'])
@pytest.mark.parametrize(('variant', 'epsilon'), [('paper', 1e-5), ('timm', 1e-6)])
def test_equals_the_formula(fuse, variant, epsilon):
  # Small parameters, so that the variance in the norm is small and its epsilon counts.
  module = GlobalContext(fuse, reduction=2, variant=variant)
  prove(module, oracle(fuse, epsilon), scale=0.1)


def shapes(module, channels):
  x = jnp.zeros((1, 2, 2, channels))
  return jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))['params']


@pytest.mark.parametrize(
  ('settings', 'widths'),
  [
    (
      {'variant': 'timm', 'reduction': 8},
      {16: 2, 20: 3, 32: 4, 48: 6, 96: 12, 160: 20, 320: 40, 512: 64},
    ),
    ({}, {16: 4, 64: 4, 92: 5, 96: 6, 160: 10, 200: 12, 512: 32}),
  ],
)
def test_hidden_widths(settings, widths):
  for channels, hidden in widths.items():
    params = shapes(GlobalContext(**settings), channels)
    assert params['add_reduce']['kernel'].shape == (channels, hidden)


@pytest.mark.parametrize('initialization', ['flax', 'torch', 'paper'])
def test_adding_starts_with_a_zero_kernel_and_multiplying_does_not(initialization):
  x = draw((2, 3, 5, 64))
  kernels = {}
  for fuse in ('add', 'multiply'):
    module = GlobalContext(fuse, initialization=initialization)
    params = initial(module, x)['params']
    kernels[fuse] = params[f'{fuse}_expand']['kernel']
    if fuse == 'add' and initialization != 'torch':
      got = module.apply({'params': params}, x, train=False).features
      np.testing.assert_array_equal(got, x)
  assert not kernels['add'].any()
  assert np.std(kernels['multiply']) > 0.05


def test_the_scores_start_as_the_authors_do():
  module, x = GlobalContext(initialization='paper'), jnp.zeros((1, 2, 2, 5000))
  kernel = initial(module, x)['params']['score']['kernel']
  np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / 5000), rtol=0.05)


def test_without_scores_the_context_is_the_average():
  module, x = GlobalContext('multiply', reduction=3), draw()
  params = variables_of(module, x)['params']
  params['score']['kernel'] = jnp.zeros((12, 1))
  returned = module.apply({'params': params}, x, train=False)
  np.testing.assert_allclose(returned.maps['weights'].weights, 1 / 15, rtol=1e-6)
  shuffled = jnp.flip(x, (1, 2))
  again = module.apply({'params': params}, shuffled, train=False)
  np.testing.assert_allclose(again.maps['gate'].weights, returned.maps['gate'].weights, rtol=1e-5)


def test_the_bias_of_the_scores_moves_nothing():
  module, x = GlobalContext(reduction=3), draw()
  params = variables_of(module, x)['params']
  moved = {**params, 'score': {**params['score'], 'bias': params['score']['bias'] + 3}}
  a, b = (module.apply({'params': p}, x, train=False).features for p in (params, moved))
  np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [({'fuse': 'both'}, "fuse='both' must be"), ({'variant': 'new'}, "variant='new' must be")],
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    GlobalContext(**settings).init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)), train=False)
