"""Bottleneck attention module against the formula of each variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import Bam
from tests.layer_oracles import batch_norm, convolve, sigmoid
from tests.proof import draw, prove, variables_of


def oracle(variant, dilation):
  def layer(p, name, z):
    return z @ p[f'{name}/kernel'] + p[f'{name}/bias']

  def compute(p, x, train):
    official = variant == 'official'

    def hidden(z, name):
      return np.maximum(batch_norm(z, p, name, train) if official else z, 0)

    def last(z, name):
      return z if official else batch_norm(z, p, name, train)

    channel = layer(p, 'channel_reduce', x.mean((1, 2)))
    channel = layer(p, 'channel_expand', hidden(channel, 'channel_norm'))
    channel = last(channel, 'channel_norm')
    spatial = hidden(layer(p, 'spatial_reduce', x), 'spatial_norm_0')
    for i in (1, 2):
      name = f'spatial_dilated_{i}'
      spatial = convolve(spatial, p[f'{name}/kernel'], dilation=dilation) + p[f'{name}/bias']
      spatial = hidden(spatial, f'spatial_norm_{i}')
    spatial = last(layer(p, 'spatial_expand', spatial), 'spatial_norm')
    gates = np.zeros(x.shape)
    for c in range(x.shape[-1]):
      a, b = channel[:, None, None, c], spatial[..., 0]
      gates[..., c] = 1 + sigmoid(a * b if official else a + b)
    return x * gates, {'gate': gates}

  return compute


@pytest.mark.parametrize('variant', ['paper', 'official'])
@pytest.mark.parametrize(
  ('train', 'dilation', 'shape'), [(False, 4, (2, 6, 7, 12)), (True, 1, (8, 1, 3, 12))]
)
def test_equals_the_formula(variant, train, dilation, shape):
  # In training many small images: the norm of the channel branch divides by how the averages of the
  # images differ, and magnifies their rounding where they hardly do.
  module = Bam(reduction=2, dilation=dilation, variant=variant)
  prove(module, oracle(variant, dilation), shape=shape, train=train)


def shapes(module, channels):
  x = jnp.zeros((1, 2, 2, channels))
  return jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))['params']


def test_widths_and_norms():
  params = shapes(Bam(), 48)
  assert params['channel_reduce']['kernel'].shape == (48, 3)
  assert params['spatial_dilated_2']['kernel'].shape == (3, 3, 3, 3)
  assert shapes(Bam(), 60)['channel_reduce']['kernel'].shape == (60, 3)
  assert shapes(Bam(), 8)['spatial_reduce']['kernel'].shape == (8, 1)
  paper, official = (
    {name: p['scale'].size for name, p in shapes(Bam(variant=v), 48).items() if 'scale' in p}
    for v in ('paper', 'official')
  )
  assert paper == {'channel_norm': 48, 'spatial_norm': 1}
  assert official == {f'spatial_norm_{i}': 3 for i in range(3)} | {'channel_norm': 3}


@pytest.mark.parametrize(
  ('variant', 'gate'), [('paper', 1 + 1 / (1 + np.e**-3)), ('official', 1.5)]
)
def test_a_silent_channel_branch_leaves_the_sum_and_silences_the_product(variant, gate):
  module, x = Bam(4, variant=variant), draw()
  params = jax.tree.map(jnp.zeros_like, variables_of(module, x))
  last = 'spatial_norm' if variant == 'paper' else 'spatial_expand'
  params['params'][last]['bias'] = jnp.full(1, 3.0)
  weights = module.apply(params, x, train=False).maps['gate'].weights
  np.testing.assert_allclose(weights, gate, rtol=1e-6)


def test_the_spatial_branch_sees_eight_positions_far_on_a_grid_of_four():
  module, x = Bam(4), draw((1, 1, 20, 12))
  variables = variables_of(module, x, scale=0.2)
  variables['params']['channel_norm']['scale'] = jnp.zeros(12)
  for name in ('spatial_reduce', 'spatial_dilated_1', 'spatial_dilated_2'):
    variables['params'][name] = jax.tree.map(jnp.abs, variables['params'][name])

  def probed(x):
    return module.apply(variables, x, train=False).maps['gate'].weights[0, 0, 10, 0]

  moved = np.abs(jax.grad(probed)(jnp.abs(x))).sum((0, 1, 3))
  assert np.flatnonzero(moved).tolist() == [2, 6, 10, 14, 18]


def test_another_variant_is_refused():
  with pytest.raises(ValueError, match="variant='timm' must be 'paper' or 'official'"):
    shapes(Bam(variant='timm'), 4)
