"""Selective kernels against the formula, path by path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import SelectiveKernel
from tests.layer_oracles import batch_norm, convolve
from tests.proof import draw, prove, variables_of


def oracle(module):
  number = len(module.paths)

  def compute(p, x, train):
    outputs = []
    for i, (_, dilation) in enumerate(module.paths):
      share = x.shape[-1] // number
      seen = x[..., i * share : (i + 1) * share] if module.variant == 'timm' else x
      settings = {'stride': module.strides, 'dilation': dilation, 'groups': module.groups}
      u = convolve(seen, p[f'path_{i}/kernel'], **settings)
      outputs.append(np.maximum(batch_norm(u, p, f'path_norm_{i}', train), 0))
    s = sum(outputs).mean((1, 2))
    z = np.maximum(batch_norm(s @ p['reduce/kernel'], p, 'reduce_norm', train), 0)
    features = s.shape[-1]
    scores = [z @ p['select/kernel'][:, i * features : (i + 1) * features] for i in range(number)]
    total = sum(np.exp(score) for score in scores)
    weights = [np.exp(score) / total for score in scores]
    out = sum(w[:, None, None] * u for w, u in zip(weights, outputs, strict=True))
    return out, {'weights': np.stack(weights, 1)}

  return compute


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  'settings',
  [
    {'paths': ((3, 1), (5, 1), (3, 3)), 'groups': 4},
    {'variant': 'timm', 'features': 6, 'strides': 2},
  ],
  ids=str,
)
def test_equals_the_formula(settings, train):
  module = SelectiveKernel(**settings)
  # Of few images, a batch norm on the averages is nearly a step: it magnifies rounding, and finite
  # differences see its bends.
  prove(module, oracle(module), shape=(20, 3, 5, 12), train=train, scale=0.2)


@pytest.mark.parametrize(
  ('settings', 'widths'),
  [
    ({'variant': 'timm'}, {16: 8, 64: 8, 128: 8, 160: 16, 256: 16, 320: 24, 512: 32}),
    ({'variant': 'timm', 'reduction': 8}, {64: 8, 128: 16, 256: 32}),
    ({'variant': 'timm', 'reduction': 8, 'divisor': 16}, {64: 16, 128: 16, 256: 32, 320: 48}),
    ({'variant': 'paper'}, {16: 32, 256: 32, 512: 32, 1024: 64, 1040: 65}),
  ],
)
def test_hidden_widths(settings, widths):
  for channels, hidden in widths.items():
    module, x = SelectiveKernel(**settings), jnp.zeros((1, 2, 2, channels))
    shapes = jax.eval_shape(lambda m=module, x=x: m.init(jax.random.key(0), x, train=False))
    assert shapes['params']['reduce']['kernel'].shape == (channels, hidden)


def test_a_dilated_3x3_is_a_5x5_with_holes():
  dilated, holed = SelectiveKernel(), SelectiveKernel(paths=((3, 1), (5, 1)))
  x = draw()
  given = variables_of(dilated, x)
  kernel = given['params']['path_1']['kernel']
  spread = jnp.zeros((5, 5, 12, 12)).at[::2, ::2].set(kernel)
  spread = {**given, 'params': {**given['params'], 'path_1': {'kernel': spread}}}
  a = dilated.apply(given, x, train=False).features
  np.testing.assert_allclose(a, holed.apply(spread, x, train=False).features, atol=1e-5)


def test_a_single_path_is_not_chosen_but_taken():
  """Softmax over one path is one: the map says so, and nothing behind it has a gradient."""
  module, x = SelectiveKernel(paths=((3, 1),)), draw()
  given = variables_of(module, x)

  def loss(params):
    attended = module.apply({**given, 'params': params}, x, train=False)
    return (attended.features**2).sum(), attended.maps['weights'].weights

  gradient, weights = jax.grad(loss, has_aux=True)(given['params'])
  np.testing.assert_array_equal(weights, jnp.ones((2, 1, 12)))
  for layer in ('reduce', 'reduce_norm', 'select'):
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient[layer]))
  assert np.abs(gradient['path_0']['kernel']).min() > 0


def test_equal_scores_take_the_mean_of_the_paths():
  module, x = SelectiveKernel(paths=((3, 1), (3, 1))), draw()
  given = variables_of(module, x)
  params, stats = {**given['params']}, {**given['batch_stats']}
  params['path_1'], params['path_norm_1'] = params['path_0'], params['path_norm_0']
  stats['path_norm_1'] = stats['path_norm_0']
  same = module.apply({'params': params, 'batch_stats': stats}, x, train=False)
  params['select'] = {'kernel': jnp.zeros((32, 24))}
  halves = module.apply({'params': params, 'batch_stats': stats}, x, train=False)
  np.testing.assert_allclose(same.features, halves.features, atol=1e-6)
  np.testing.assert_array_equal(halves.maps['weights'].weights, jnp.full((2, 2, 12), 0.5))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'paths': ((4, 1),)}, r'paths=\(\(4, 1\),\) must be'),
    ({'paths': ((3, 1),) * 5, 'variant': 'timm'}, '5 paths of .* must divide C=12'),
    ({'groups': 5}, 'groups=5 must divide 12'),
    ({'variant': 'official'}, "variant='official' must be"),
  ],
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    SelectiveKernel(**settings).init(jax.random.key(0), draw(), train=False)
