"""Rollout, Chefer's rule, LeGrad and the rest against NumPy, from gradients got another way."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import Classifier
from jattn.attention import SelfAttention
from jattn.explain import explain, upsample
from jattn.explain.attention_maps import layers, roll
from jattn.explain.network import open_network
from jattn.explain.tokens import Row, regrid
from jattn.models import Head, resnet_cifar
from jattn.pooling import Average
from jattn.types import Attended
from tests.explain.networks import (
  attention_gradients,
  convolutional,
  moved,
  pictures,
  predict,
  transformer,
)

TARGETS = jnp.array([2, 0])
GRID = (2, 3)


@pytest.fixture(scope='module')
def layered():
  """(A, dS/dA) of both layers of a transformer with a class token, in float64."""
  pairs = attention_gradients(*transformer(), TARGETS)
  return [[np.asarray(a, np.float64) for a in part] for part in pairs]


def shown(plane):
  """A map of patches [B, N] as ``explain`` returns it."""
  return np.asarray(upsample(jnp.asarray(plane, jnp.float32).reshape(2, *GRID), (8, 12)))


def close(method, want, **settings):
  got = explain(method, *transformer(), TARGETS, **settings)
  assert got.shape == (2, 8, 12)
  assert got.dtype == jnp.float32
  assert np.abs(want).max() > 1e-5
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_attention_is_the_class_token_s_row(layered):
  weights, _ = layered
  close('attention', shown(weights[1].mean(axis=1)[:, 0, 1:]))
  path = 'backbone/stage_0/block_0/attention/weights'
  close('attention', shown(weights[0].mean(axis=1)[:, 0, 1:]), path=path)


def test_rollout(layered):
  product = np.eye(7)
  for a in layered[0]:
    mixed = a.mean(axis=1) + np.eye(7)
    product = mixed / mixed.sum(axis=-1, keepdims=True) @ product
  np.testing.assert_allclose(product.sum(axis=-1), 1)
  close('rollout', shown(product[:, 0, 1:]))


def test_chefer(layered):
  relevance = np.eye(7)
  for a, g in zip(*layered, strict=True):
    relevance = relevance + np.maximum(a * g, 0).mean(axis=1) @ relevance
  close('chefer', shown(relevance[:, 0, 1:]))


def test_chefer_without_a_class_token_is_a_mean_over_the_queries():
  """Of one layer it is the gradient times attention, over the N queries, without the identity."""
  summed = explain('gradient_attention', *convolutional(), TARGETS)
  mean = explain('chefer', *convolutional(), TARGETS)
  np.testing.assert_allclose(24 * mean, summed, rtol=1e-5)


def test_gradient_attention(layered):
  a, g = (part[-1] for part in layered)
  close('gradient_attention', shown(np.maximum(a * g, 0).mean(axis=1).sum(axis=1)[:, 1:]))


def test_attention_grad_cam(layered):
  a, g = (part[-1] for part in layered)
  # The sign of the gradient is turned so that something is left of it.
  weights = g[:, :, 0, 1:].mean(axis=-1, keepdims=True)
  want = np.maximum((weights * a[:, :, 0, 1:]).mean(axis=1), 0)
  got = explain('attention_grad_cam', *transformer(), TARGETS)
  np.testing.assert_allclose(got, shown(want), atol=1e-5 * np.abs(weights).max())
  other = explain('attention_grad_cam', *transformer(), jnp.array([0, 1]))
  assert max(np.abs(got).max(), np.abs(other).max()) > 1e-5


def test_legrad():
  """The score of a layer is that of a transformer cut off behind it."""
  _, variables, images = transformer()
  total = 0
  for depth in (1, 2):
    cut, *_ = transformer(depth=depth)
    _, gradients = attention_gradients(cut, variables, images, TARGETS)
    total = total + np.maximum(gradients[-1], 0).mean(axis=(1, 2))[:, 1:]
  close('legrad', shown(total / 2))


def test_legrad_leaves_out_blocks_that_the_head_cannot_read():
  """Of three stages of different grids the last alone: its gradient is that of the logit."""
  model = resnet_cifar(3, depth=8, widths=(4, 4, 4), attention='self_attention')
  images = pictures(2, 8, 8, 3)
  variables = moved(model, images, scale=0.7)

  @jax.jit
  def of_the_last(variables, images):
    network = open_network(model, variables, images)
    assert len(network.blocks) == len(network.looks) == 3
    return network.looked(network.looks[-1:], TARGETS)[0][1]

  gradient = jax.nn.relu(of_the_last(variables, images)).mean(axis=(1, 2)).reshape(2, 2, 2)
  assert gradient.max() > 1e-5
  got = explain('legrad', model, variables, images, TARGETS)
  np.testing.assert_allclose(got, upsample(gradient, (8, 8)), atol=1e-5 * gradient.max())


class Unstaged(nn.Module):
  """A backbone whose attention is in nothing that is called a stage."""

  @nn.compact
  def __call__(self, images, *, train):
    found = SelfAttention(name='looking')(nn.Dense(4, name='in')(images), train=train)
    return Attended(found.features, {'looking/weights': found.maps['weights']})


def test_legrad_says_how_a_block_is_known():
  model, images = Classifier(Unstaged(), Average(), Head(3)), pictures(2, 4, 6, 3)
  with pytest.raises(ValueError, match='no submodules named stage_S'):
    explain('legrad', model, moved(model, images), images, TARGETS)


def test_one_layer_without_a_class_token():
  """The mean of the rows of (A + I) / 2, and without a residual of A: attention received."""
  model, variables, images = convolutional()
  a = predict(model, variables, images).maps['attention_0/weights'].weights
  a = np.asarray(a, np.float64).mean(axis=1)
  rows = (a + np.eye(24)) / 2
  want = upsample(jnp.asarray(rows.mean(axis=1), jnp.float32).reshape(2, 4, 6), (8, 12))
  np.testing.assert_allclose(explain('rollout', model, variables, images), want, atol=1e-7)
  bare = explain('rollout', model, variables, images, residual=0)
  want = upsample(jnp.asarray(a.mean(axis=1), jnp.float32).reshape(2, 4, 6), (8, 12))
  np.testing.assert_allclose(bare, want, atol=1e-7)
  np.testing.assert_allclose(explain('attention', model, variables, images), want, atol=1e-7)


def test_rollout_s_rows_sum_to_one_through_local_maps_and_strides():
  """timm's halo gives weight to what is outside, and every stage has another grid."""
  halo = {'name': 'halo', 'num_heads': 1, 'block_size': 4, 'halo': 2, 'variant': 'timm'}
  model = resnet_cifar(3, depth=8, widths=(4, 4, 4), attention=halo)
  images = pictures(2, 8, 8, 3)
  variables = moved(model, images)

  @jax.jit
  def rows(variables, images):
    network = open_network(model, variables, images)
    stack = layers(network, network.looks)
    assert [layer[0].grid for layer in stack] == [(8, 8), (4, 4), (2, 2)]

    def row(plane):
      out = Row(jnp.zeros((2, 0)), jnp.broadcast_to(plane.reshape(1, 2, 2), (2, 2, 2)))
      for layer in reversed(stack):
        values = [a.mean(axis=1) for a in network.read([look.shown for look in layer])]
        out = roll(out, layer, values)
      return out.plane

    return jax.vmap(row)(jnp.eye(4))

  out = rows(variables, images)
  assert out.shape == (4, 2, 8, 8)
  assert (out >= 0).all()
  np.testing.assert_allclose(out.sum(axis=(2, 3)), 1, atol=1e-6)


def test_the_gradient_by_a_pooling_s_map():
  """The pooled vector is a token that looks by the pooling's map, before any position map."""
  model, variables, images = transformer(class_token=False)
  kernel = variables['params']['pool']['score']['score']['kernel']

  @jax.jit
  def relevance(variables, images):
    features = model.apply(variables, images, method=lambda m, x: m.backbone(x, train=False))
    features = features.features.reshape(2, 6, -1)
    weights = jax.nn.softmax((features @ kernel)[..., 0])
    targets = model.apply(variables, images, train=False).logits.argmax(-1)

    def score(weights):
      vector = jnp.einsum('bn,bnc->bc', weights, features)
      logits = model.apply(variables, vector, method=lambda m, v: m.head(v, train=False))
      return logits[jnp.arange(2), targets].sum()

    return jax.nn.relu(weights * jax.grad(score)(weights))

  want = shown(relevance(variables, images))
  got = explain('gradient_attention', model, variables, images)
  assert np.abs(want).max() > 1e-3
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_regrid_keeps_the_sum_and_spreads_by_area():
  plane = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 3, 5)), jnp.float32)
  for grid in ((7, 4), (3, 10), (2, 2)):
    np.testing.assert_allclose(regrid(plane, grid).sum(axis=(1, 2)), plane.sum(axis=(1, 2)), 1e-6)
  assert regrid(jnp.array([[[6.0, 0.0, 0.0]]]), (1, 2)).tolist() == [[[6.0, 0.0]]]
  assert regrid(jnp.array([[[0.0, 6.0, 0.0]]]), (1, 2)).tolist() == [[[3.0, 3.0]]]


@pytest.mark.parametrize('method', ['rollout', 'chefer', 'legrad', 'gradient_attention'])
def test_a_model_without_a_map_says_what_is_missing(method):
  with pytest.raises(ValueError, match=f'{method} needs .*map'):
    explain(method, *convolutional('squeeze_excite'), TARGETS)


def test_a_map_that_is_only_shown_can_be_rolled_but_not_differentiated():
  assert explain('rollout', *convolutional('linear_attention')).shape == (2, 8, 12)
  with pytest.raises(ValueError, match='that the logits are computed from'):
    explain('chefer', *convolutional('linear_attention'))


def test_gates_by_place_are_shown_and_gates_by_channel_are_not():
  model, variables, images = convolutional('cbam')
  maps = predict(model, variables, images).maps
  want = upsample(maps['attention_0/spatial'].weights[..., 0], (8, 12))
  np.testing.assert_allclose(explain('attention', model, variables, images), want, atol=1e-6)
  with pytest.raises(ValueError, match='speaks of places'):
    explain('attention', *convolutional('squeeze_excite'))
  with pytest.raises(ValueError, match='no map of places'):
    explain('attention', model, variables, images, path='attention_0/channel')
