"""Triplet attention against the formula, and against itself with the axes exchanged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import TripletAttention
from tests.layer_oracles import batch_norm, convolve, sigmoid
from tests.proof import draw, prove, variables_of


def oracle(p, x, train):
  def picture(name, top, mean):
    """[B, rows, columns] twice -> gates [B, rows, columns]."""
    logits = convolve(np.stack([top, mean], -1), p[f'{name}/kernel'])
    return sigmoid(batch_norm(logits, p, f'{name}_norm', train))[..., 0]

  hw = picture('height_width', x.max(3), x.mean(3))
  over_height = x.max(1).swapaxes(1, 2), x.mean(1).swapaxes(1, 2)
  cw = picture('channel_width', *over_height)
  hc = picture('height_channel', x.max(2), x.mean(2))
  out = np.zeros(x.shape)
  for i in range(x.shape[1]):
    for j in range(x.shape[2]):
      for c in range(x.shape[3]):
        mean = (hw[:, i, j] + cw[:, c, j] + hc[:, i, c]) / 3
        out[:, i, j, c] = x[:, i, j, c] * mean
  maps = {
    'height_width': hw[..., None],
    'channel_width': cw.swapaxes(1, 2)[:, None],
    'height_channel': hc[:, :, None],
  }
  return out, maps


@pytest.mark.parametrize(('kernel_size', 'train'), [(7, False), (3, True)])
def test_equals_the_formula(kernel_size, train):
  prove(TripletAttention(kernel_size), oracle, shape=(2, 4, 5, 9), train=train)


def exchange(tree, names):
  """The same numbers with layers (and their norms) under other names."""
  return {names[layer]: value for layer, value in tree.items()}


def test_turning_the_image_exchanges_the_two_branches_with_channels():
  """With rows and columns exchanged the 7x7 kernels are transposed where the picture is."""
  module, x = TripletAttention(), draw()
  given = variables_of(module, x)
  names = {
    'height_width': 'height_width',
    'channel_width': 'height_channel',
    'height_channel': 'channel_width',
  }
  names |= {f'{old}_norm': f'{new}_norm' for old, new in names.items()}
  turned = {
    'params': exchange(given['params'], names),
    'batch_stats': exchange(given['batch_stats'], names),
  }
  for name in ('height_width', 'channel_width', 'height_channel'):
    kernel = turned['params'][name]['kernel']
    turned['params'][name] = {'kernel': kernel.swapaxes(0, 1)}
  want = module.apply(given, x, train=False).features
  got = module.apply(turned, x.swapaxes(1, 2), train=False).features
  np.testing.assert_allclose(got.swapaxes(1, 2), want, atol=1e-6)


def test_what_is_kept_of_the_running_statistics():
  module, x = TripletAttention(), draw()
  given = variables_of(module, x)
  kernels = {k: v for k, v in given['params'].items() if not k.endswith('norm')}
  params = {**given['params'], **jax.tree.map(jnp.zeros_like, kernels)}
  _, new = module.apply({**given, 'params': params}, x, train=True, mutable=['batch_stats'])
  for name, old in given['batch_stats'].items():
    np.testing.assert_allclose(new['batch_stats'][name]['var'], 0.99 * old['var'], rtol=1e-6)


def test_parameters_do_not_depend_on_the_channels():
  def shapes(channels):
    x = jnp.zeros((1, 2, 2, channels))
    variables = jax.eval_shape(lambda: TripletAttention().init(jax.random.key(0), x, train=False))
    return jax.tree.map(lambda leaf: leaf.shape, variables)

  assert shapes(4) == shapes(32)
  assert shapes(4)['params']['channel_width'] == {'kernel': (7, 7, 2, 1)}


def test_an_even_kernel_is_refused():
  with pytest.raises(ValueError, match='kernel_size=4 must be odd'):
    TripletAttention(4).init(jax.random.key(0), draw(), train=False)
