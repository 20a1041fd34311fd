"""Initialisation by its statistics, and that every layer of the seed's classifier uses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.ops import bias_init, kernel_init
from tests.proof import initial


@pytest.mark.parametrize(('shape', 'fan_in'), [((400, 90), 400), ((3, 3, 40, 90), 360)])
def test_torch_kernels_are_uniform_in_one_over_the_root_of_fan_in(shape, fan_in):
  kernel = np.asarray(kernel_init('torch')(jax.random.key(0), shape))
  bound = fan_in**-0.5
  assert 0.99 * bound < np.abs(kernel).max() <= bound
  assert kernel.std() == pytest.approx(bound / 3**0.5, rel=0.02)


def test_flax_kernels_have_variance_one_over_fan_in():
  kernel = np.asarray(kernel_init('flax')(jax.random.key(0), (400, 90)))
  assert kernel.std() == pytest.approx(400**-0.5, rel=0.02)


def test_biases():
  torch = np.asarray(bias_init('torch', fan_in=25)(jax.random.key(0), (5000,)))
  assert 0.199 < np.abs(torch).max() <= 0.2
  assert torch.std() == pytest.approx(0.2 / 3**0.5, rel=0.03)
  assert not np.asarray(bias_init('flax', fan_in=25)(jax.random.key(0), (5,))).any()


@pytest.mark.parametrize('make', [kernel_init, lambda init: bias_init(init, fan_in=2)])
def test_an_unknown_initialisation_is_refused(make):
  with pytest.raises(ValueError, match="init='keras'"):
    make('keras')


SEEDS = [name for name in jattn.list_models() if name.startswith('seed')]


@pytest.mark.parametrize('name', SEEDS)
@pytest.mark.parametrize('init', ['torch', 'flax'])
def test_every_layer_of_the_seed_models_starts_as_said(name, init):
  model = jattn.create_model(
    name, num_classes=20, initialization=init, widths=(16, 32, 64), hidden=32
  )
  variables = initial(model, jnp.zeros((1, 32, 32, 3)), key=1)
  if name == 'seed_classifier':
    of_attention = variables['params']['attention_0']
    query, key = (of_attention.pop(part)['kernel'] for part in ('query', 'key'))
    np.testing.assert_allclose(query.T @ key, 100 * np.eye(8), atol=1e-3)  # of mimetic starts
  layers, _ = jax.tree.flatten(variables['params'], is_leaf=lambda node: 'kernel' in node)
  for layer in layers:
    kernel = np.asarray(layer['kernel'])
    if 'bias' not in layer:
      continue  # the last product of a score
    fan_in = kernel.size // kernel.shape[-1]
    if name.endswith('weighted_average') and kernel.shape == (64, 128):
      continue  # the hidden layers of a score
    bound = fan_in**-0.5
    if init == 'torch':
      assert np.abs(kernel).max() <= bound
      assert 0.5 * bound < np.abs(np.asarray(layer['bias'])).max() <= bound
    else:
      assert np.abs(kernel).max() > bound
      assert not np.asarray(layer['bias']).any()
