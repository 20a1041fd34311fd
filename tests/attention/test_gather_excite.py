"""Gather-excite of every extent against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import GatherExcite, SqueezeExcite
from jattn.weights import to_timm
from tests.layer_oracles import batch_norm, convolve, sigmoid
from tests.proof import draw, initial, prove, variables_of


def averaged(x, extent):
  batch, height, width, channels = x.shape
  if extent == 0:
    return x.mean((1, 2), keepdims=True)
  out = np.zeros((batch, -(-height // extent), -(-width // extent), channels))
  for u in range(out.shape[1]):
    for v in range(out.shape[2]):
      seen = [
        x[:, i, j]
        for i in range(height)
        for j in range(width)
        if max(abs(i - extent * u), abs(j - extent * v)) < extent
      ]
      out[:, u, v] = sum(seen) / len(seen)
  return out


def oracle(extent, extra_params, use_mlp):
  def compute(p, x, train):
    if not extra_params:
      z = averaged(x, extent)
    elif extent == 0:
      z = (x * p['gather'][:, :, 0]).sum((1, 2), keepdims=True)
      z = batch_norm(z, p, 'norm_1', train)
    else:
      z, steps = x, {2: 1, 4: 2, 8: 3}[extent]
      for i in range(1, steps + 1):
        z = convolve(z, p[f'gather_{i}/kernel'], stride=2, groups=x.shape[-1])
        z = batch_norm(z, p, f'norm_{i}', train)
        z = np.maximum(z, 0) if i < steps else z
    if use_mlp:
      hidden = np.maximum(z @ p['reduce/kernel'] + p['reduce/bias'], 0)
      z = hidden @ p['expand/kernel'] + p['expand/bias']
    if extent:
      gates = np.zeros(x.shape)
      for i in range(x.shape[1]):
        for j in range(x.shape[2]):
          row, column = i * z.shape[1] // x.shape[1], j * z.shape[2] // x.shape[2]
          gates[:, i, j] = sigmoid(z[:, row, column])
    else:
      gates = sigmoid(z)
    return x * gates, {'gate': gates}

  return compute


@pytest.mark.parametrize(
  ('extent', 'extra_params', 'use_mlp', 'train'),
  [
    (0, False, False, False),
    (2, False, False, False),
    (4, False, True, False),
    (8, False, False, False),
    (0, True, True, False),
    (0, True, False, True),
    (2, True, False, True),
    (4, True, True, False),
    (8, True, False, False),
  ],
)
def test_equals_the_formula(extent, extra_params, use_mlp, train):
  module = GatherExcite(extent, extra_params, use_mlp, reduction=3)
  prove(module, oracle(extent, extra_params, use_mlp), shape=(4, 7, 10, 6), train=train)


def test_seven_positions_take_from_four():
  """Halves of an extent of two: 0, 0, 1, 1, 2, 2, 3, and not 0, 0, 1, 2, 2, 3, 3."""
  x = jnp.arange(7.0).reshape(1, 7, 1, 1)
  gates = GatherExcite(2).apply({}, x, train=False).maps['gate'].weights[0, :, 0, 0]
  means = np.array([0.5, 2, 4, 5.5])  # of {0, 1}, {1, 2, 3}, {3, 4, 5}, {5, 6}
  np.testing.assert_allclose(gates, sigmoid(means[[0, 0, 1, 1, 2, 2, 3]]), rtol=1e-6)


def test_extent_0_with_the_bottleneck_alone_is_squeeze_excite():
  x, settings = draw(), {'reduction': 4}
  variables = variables_of(SqueezeExcite(**settings), x)
  want = SqueezeExcite(**settings).apply(variables, x, train=False).features
  got = GatherExcite(use_mlp=True, **settings).apply(variables, x, train=False).features
  np.testing.assert_allclose(got, want, atol=1e-7)


def test_a_kernel_of_equal_numbers_stays_an_average_at_another_size():
  module, small, large = GatherExcite(extra_params=True), draw((2, 3, 5, 4)), draw((2, 6, 8, 4))
  variables = initial(module, small)
  variables['params']['gather'] = jnp.full((3, 5, 1, 4), 1 / 15)
  got = module.apply(variables, large, train=False).maps['gate'].weights[:, 0, 0]
  mean = np.asarray(large).mean((1, 2))
  np.testing.assert_allclose(got, sigmoid(mean / np.sqrt(1 + 1e-5)), rtol=1e-5)


def test_a_kernel_is_interpolated_linearly_at_another_size():
  module, small, large = GatherExcite(extra_params=True), jnp.ones((1, 1, 3, 1)), draw((1, 1, 5, 1))
  variables = initial(module, small)
  variables['params']['gather'] = jnp.array([1.0, 4.0, 7.0]).reshape(1, 3, 1, 1)
  got = module.apply(variables, large, train=False).maps['gate'].weights[0, 0, 0, 0]
  # Five samples of the line through (1/6, 1), (3/6, 4), (5/6, 7), flat beyond its ends; the sum of
  # the kernel is kept.
  kernel = np.array([1, 2.2, 4, 5.8, 7]) * 3 / 5
  logit = kernel @ np.asarray(large).ravel() / np.sqrt(1 + 1e-5)
  np.testing.assert_allclose(got, sigmoid(logit), rtol=1e-5)


@pytest.mark.parametrize(('channels', 'hidden'), [(8, 1), (88, 6), (96, 6), (160, 10)])
def test_hidden_widths(channels, hidden):
  x = jnp.zeros((1, 2, 2, channels))
  module = GatherExcite(use_mlp=True)
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
  assert variables['params']['reduce']['kernel'].shape == (channels, hidden)


def test_names_and_shapes_there():
  x = jnp.zeros((2, 3, 5, 16))
  module = GatherExcite(extra_params=True, use_mlp=True)
  stored = to_timm(module, initial(module, x))
  assert stored['gather.conv1.weight'].shape == (16, 1, 3, 5)
  assert stored['gather.norm1.running_var'].shape == (16,)
  assert stored['mlp.fc1.weight'].shape == (1, 16, 1, 1)


@pytest.mark.parametrize('extent', [1, 3, 6, -2])
def test_what_is_refused(extent):
  with pytest.raises(ValueError, match=f'extent={extent} must be 0, 2, 4'):
    GatherExcite(extent).apply({}, jnp.zeros((1, 2, 2, 4)), train=False)
