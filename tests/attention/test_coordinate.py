"""Coordinate attention against the formula of each variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import CoordinateAttention
from tests.layer_oracles import batch_norm, sigmoid
from tests.proof import draw, prove, variables_of


def oracle(p, x, train):
  batch, height, width, channels = x.shape
  z = np.zeros((batch, height + width, channels))
  for i in range(height):
    z[:, i] = sum(x[:, i, j] for j in range(width)) / width
  for j in range(width):
    z[:, height + j] = sum(x[:, i, j] for i in range(height)) / height
  t = batch_norm(z @ p['reduce/kernel'] + p.get('reduce/bias', 0), p, 'norm', train)
  f = t * np.clip(t + 3, 0, 6) / 6
  rows = sigmoid(f[:, :height] @ p['rows/kernel'] + p.get('rows/bias', 0))
  columns = sigmoid(f[:, height:] @ p['columns/kernel'] + p.get('columns/bias', 0))
  out = np.einsum('bijc,bic,bjc->bijc', x, rows, columns)
  return out, {'rows': rows[:, :, None], 'columns': columns[:, None]}


@pytest.mark.parametrize('variant', ['paper', 'timm'])
@pytest.mark.parametrize('train', [False, True])
def test_equals_the_formula(variant, train):
  prove(CoordinateAttention(variant=variant), oracle, train=train)


def shapes(module, channels):
  x = jnp.zeros((1, 2, 2, channels))
  return jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))['params']


@pytest.mark.parametrize(
  ('settings', 'widths'),
  [
    ({'variant': 'timm'}, {16: 8, 256: 8, 320: 16, 512: 24, 1024: 40, 2048: 88}),
    ({}, {16: 8, 256: 8, 304: 9, 320: 10, 512: 16, 2048: 64}),
    ({'reduction': 4}, {16: 8, 50: 12}),
    ({'variant': 'timm', 'reduction': 4}, {16: 8, 50: 16}),
  ],
)
def test_hidden_widths(settings, widths):
  for channels, hidden in widths.items():
    params = shapes(CoordinateAttention(**settings), channels)
    assert params['reduce']['kernel'].shape == (channels, hidden)


def test_biases_are_the_authors_only():
  def biased(variant):
    params = shapes(CoordinateAttention(variant=variant), 16)
    return {layer for layer in params if 'bias' in params[layer]}

  assert biased('paper') == {'reduce', 'norm', 'rows', 'columns'}
  assert biased('timm') == {'norm'}


def test_turning_the_image_swaps_rows_and_columns():
  module, x = CoordinateAttention(), draw()
  given = variables_of(module, x)
  turned = {**given, 'params': {**given['params']}}
  turned['params']['rows'] = given['params']['columns']
  turned['params']['columns'] = given['params']['rows']
  want = module.apply(given, x, train=False)
  got = module.apply(turned, x.swapaxes(1, 2), train=False)
  np.testing.assert_allclose(got.features.swapaxes(1, 2), want.features, atol=1e-6)
  assert not np.allclose(
    want.maps['rows'].weights[:, :3, 0], want.maps['columns'].weights[:, 0, :3]
  )


def test_a_row_does_not_move_the_gate_of_another():
  module, x = CoordinateAttention(), draw()
  given = variables_of(module, x)

  def probed(x):
    return module.apply(given, x, train=False).maps['rows'].weights[:, 1].sum()

  gradient = jax.grad(probed)(x)
  assert not gradient[:, [0, 2]].any()
  assert np.abs(gradient[:, 1]).min() > 0


def test_the_bias_before_the_norm_is_dead_in_training():
  module, x = CoordinateAttention(), draw()
  given = variables_of(module, x)

  def loss(params):
    variables = {**given, 'params': params}
    out, _ = module.apply(variables, x, train=True, mutable=['batch_stats'])
    return (out.features * draw(seed=3)).sum()

  gradient = jax.grad(loss)(given['params'])
  np.testing.assert_allclose(gradient['reduce']['bias'], 0, atol=1e-6)
  assert np.abs(gradient['rows']['bias']).min() > 1e-4


def test_another_variant_is_refused():
  with pytest.raises(ValueError, match="variant='new' must be 'paper' or 'timm'"):
    shapes(CoordinateAttention(variant='new'), 4)
