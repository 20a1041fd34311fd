"""The gradient by a map is that of the attention as it is used, however it is shown."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.explain.network import open_network
from jattn.models import resnet_cifar
from jattn.types import AttentionMap
from tests.explain.networks import (
  attention_gradients,
  convolutional,
  features_of,
  moved,
  pictures,
  transformer,
)

TARGETS = jnp.array([2, 0])


def values_of(params, features, heads):
  """The values [B, N, M, D] of a mechanism, from its parameters."""
  tokens = features.reshape(len(features), -1, features.shape[-1])
  if 'key_value' in params:
    both = (tokens @ params['key_value']['kernel']).reshape(*tokens.shape[:2], heads, -1)
    return jnp.split(both, 2, axis=-1)[1]
  values = tokens @ params['value']['kernel'] + params['value']['bias'][None, None]
  return values.reshape(*tokens.shape[:2], heads, -1)


@pytest.mark.parametrize(
  ('mechanism', 'settings'),
  [
    ('self_attention', {'num_heads': 2}),
    ('halo', {'num_heads': 2, 'block_size': 3, 'halo': 1}),
    ('window', {'num_heads': 2, 'window_size': 3, 'shift': 1}),
  ],
)
def test_the_gradient_by_a_map_is_that_of_a_network_written_with_the_map_as_its_input(
  mechanism, settings
):
  model, variables, images = convolutional(mechanism, **settings)
  params = variables['params']['attention_0']

  def logit(weights, variables, shown, features):
    """Of the targets, summed: attention is an argument here."""
    values = values_of(params, features, settings.get('num_heads', 1))
    dense = AttentionMap(weights, 'position', shown.grid, shown.keys).dense()
    out = jnp.einsum('bmqk,bkmd->bqmd', dense, values).reshape(features.shape)
    if 'out' in params:
      out = out @ params['out']['kernel'] + params['out']['bias'][None, None, None]
    logits = model.apply(variables, out, method=classify)
    return logits[jnp.arange(2), TARGETS].sum()

  @jax.jit
  def both(variables, images):
    network = open_network(model, variables, images)
    ((weights, gradient),) = network.looked(network.looks, TARGETS)
    prediction = model.apply(variables, images, train=False)
    (shown,) = prediction.maps.values()
    features = model.apply(
      variables, images, method=lambda m, x: m.backbone(x, train=False).features
    )
    want = jax.grad(logit)(shown.weights, variables, shown, features)
    return weights, gradient, shown, want, features

  weights, gradient, shown, want, features = both(variables, images)
  inside = np.ones(weights.shape, bool) if shown.keys is None else (shown.keys >= 0)[None, None]
  np.testing.assert_allclose(weights, shown.weights, atol=1e-6)
  np.testing.assert_allclose(gradient * inside, want, atol=1e-5 * np.abs(want).max())

  with jax.enable_x64(True):
    double = jax.tree.map(lambda a: np.asarray(a, np.float64), (variables, features, weights))
    variables, features, weights = jax.tree.map(jnp.asarray, double)
    at = jax.jit(lambda weights: logit(weights, variables, shown, features))
    direction = np.random.default_rng(0).normal(size=weights.shape) * inside
    difference = (at(weights + 1e-5 * direction) - at(weights - 1e-5 * direction)) / 2e-5
  slope = (np.asarray(gradient, np.float64) * np.asarray(direction)).sum()
  np.testing.assert_allclose(slope, difference, rtol=1e-3)


def classify(model, features):
  return model.head(model.pool(features, train=False).vector, train=False)


def test_the_gradient_in_every_block_of_a_transformer():
  """Also where the blocks are made again in the backward pass."""
  model, variables, images = transformer(remat=True)
  weights, gradients = attention_gradients(*transformer(), TARGETS)

  @jax.jit
  def looked(variables, images):
    network = open_network(model, variables, images)
    return network.looked(network.looks, TARGETS)

  got = looked(variables, images)
  assert len(got) == 2
  for (a, g), want_a, want_g in zip(got, weights, gradients, strict=True):
    np.testing.assert_allclose(a, want_a, atol=1e-6)
    np.testing.assert_allclose(g, want_g, atol=1e-5 * np.abs(want_g).max())
  assert np.abs(gradients[1][:, :, 1:]).max() == 0  # behind the last block only the token is read


def test_maps_are_in_the_order_in_which_the_network_looks():
  model = resnet_cifar(3, depth=8, widths=(4, 4, 4), attention='axial')
  images = pictures(1, 8, 8, 3)
  network = open_network(model, moved(model, images), images)
  want = [f'backbone/stage_{s}/block_0/attention/{n}' for s in range(3) for n in ('column', 'row')]
  assert [look.path for look in network.looks] == want


@pytest.mark.parametrize('name', ['linear_attention', 'lite_mla'])
def test_a_map_that_is_only_shown_is_not_used(name):
  model, variables, images = convolutional(name)
  assert [look.used for look in open_network(model, variables, images).looks] == [None]


def test_features_are_what_the_pooling_sees():
  (got, gradient), want = features_of(*convolutional(), TARGETS)
  assert got.shape == gradient.shape == (2, 4, 6, 8)
  np.testing.assert_allclose(got, want, atol=1e-6)
  assert np.abs(gradient).max() > 1e-3


def test_where_a_class_token_is_read_features_are_what_the_last_block_sees():
  model, variables, images = transformer()
  (got, gradient), unread = features_of(model, variables, images, TARGETS)
  assert got.shape == gradient.shape == unread.shape == (2, 2, 3, 8)
  norm = variables['params']['backbone']['stage_0_block_1']['norm_0']
  normed = (got - norm['bias'][None, None, None]) / norm['scale'][None, None, None]
  np.testing.assert_allclose(normed.mean(axis=-1), 0, atol=1e-5)
  np.testing.assert_allclose(normed.std(axis=-1), 1, atol=1e-3)
  assert np.abs(gradient).max() > 1e-4


def test_a_mechanism_that_makes_tokens_has_no_places_behind_it():
  model, variables, images = convolutional('token_learner', num_tokens=3)
  network = open_network(model, variables, images)
  assert network.grid == (4, 6)
  assert network.program.shapes[network.features].shape == (2, 4, 6, 8)
