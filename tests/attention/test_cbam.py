"""Convolutional block attention against the formula of each variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import Cbam
from tests.layer_oracles import batch_norm, convolve, sigmoid
from tests.proof import draw, prove, variables_of


def oracle(variant):
  def compute(p, x, train):
    channel = np.zeros((len(x), 1, 1, x.shape[-1]))
    for image, out in zip(x, channel, strict=True):
      positions = image.reshape(-1, image.shape[-1])
      for z in (positions.mean(0), positions.max(0)):
        hidden = np.maximum(z @ p['reduce/kernel'] + p.get('reduce/bias', 0), 0)
        out += hidden @ p['expand/kernel'] + p.get('expand/bias', 0)
    channel = sigmoid(channel)
    gated = x * channel
    parts = [gated.mean(-1), gated.max(-1)]
    parts = parts[::-1] if variant == 'official' else parts
    spatial = convolve(np.stack(parts, -1), p['spatial/kernel'])
    if variant != 'paper':
      spatial = batch_norm(spatial, p, 'norm', train)
    spatial = sigmoid(spatial)
    return gated * spatial, {'channel': channel, 'spatial': spatial}

  return compute


@pytest.mark.parametrize(
  ('variant', 'train', 'kernel_size'),
  [
    ('paper', False, 7),
    ('official', False, 3),
    ('official', True, 7),
    ('timm', False, 7),
    ('timm', True, 3),
  ],
)
def test_equals_the_formula(variant, train, kernel_size):
  module = Cbam(reduction=5, kernel_size=kernel_size, variant=variant)
  prove(module, oracle(variant), train=train)


def shapes(module, channels):
  x = jnp.zeros((1, 2, 2, channels))
  return jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))


@pytest.mark.parametrize(
  ('variant', 'widths'),
  [
    ('timm', {8: 1, 16: 1, 24: 2, 48: 3, 160: 10, 320: 20}),
    ('official', {8: 1, 16: 1, 24: 1, 48: 3, 160: 10, 320: 20}),
  ],
)
def test_hidden_widths(variant, widths):
  for channels, hidden in widths.items():
    params = shapes(Cbam(variant=variant), channels)['params']
    assert params['reduce']['kernel'].shape == (channels, hidden)


def test_biases_are_the_authors_only():
  def biased(variant):
    params = shapes(Cbam(variant=variant), 16)['params']
    return {layer for layer in params if 'bias' in params[layer]} - {'norm'}

  assert biased('paper') == biased('timm') == set()
  assert biased('official') == {'reduce', 'expand'}


def test_official_is_timm_with_the_input_channels_of_the_convolution_swapped():
  timm, official = Cbam(6, variant='timm'), Cbam(6, variant='official')
  x = draw()
  given = variables_of(timm, x)
  params = {**given['params']}
  params['spatial'] = {'kernel': params['spatial']['kernel'][:, :, ::-1]}
  params['reduce'] |= {'bias': jnp.zeros(2)}
  params['expand'] |= {'bias': jnp.zeros(12)}
  swapped = official.apply({**given, 'params': params}, x, train=False)
  np.testing.assert_allclose(
    swapped.features, timm.apply(given, x, train=False).features, atol=1e-6
  )


@pytest.mark.parametrize(('variant', 'kept'), [('official', 0.99), ('timm', 0.9)])
def test_share_of_the_running_statistics_that_is_kept(variant, kept):
  module, x = Cbam(6, variant=variant), draw()
  given = variables_of(module, x)
  given = {**given, 'params': {**given['params'], 'spatial': {'kernel': jnp.zeros((7, 7, 2, 1))}}}
  _, new = module.apply(given, x, train=True, mutable=['batch_stats'])
  old = given['batch_stats']['norm']['var']
  np.testing.assert_allclose(new['batch_stats']['norm']['var'], kept * old, rtol=1e-6)


def test_equal_maxima_share_the_gradient():
  """On a constant map, with a spatial gate that is constant, no position is preferred."""
  module, x = Cbam(4), jnp.broadcast_to(draw((1, 1, 1, 12)), (1, 3, 5, 12))
  params = variables_of(module, x)['params']
  params['spatial']['kernel'] = jnp.zeros((7, 7, 2, 1))
  gradient = jax.grad(lambda x: module.apply({'params': params}, x, train=False).features.sum())(x)
  assert np.abs(gradient).min() > 1e-4
  np.testing.assert_allclose(gradient, jnp.broadcast_to(gradient[:, :1, :1], x.shape), rtol=1e-5)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [({'variant': 'bam'}, "variant='bam' must be"), ({'kernel_size': 4}, 'kernel_size=4 must be')],
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    Cbam(**settings).init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)), train=False)
