"""Efficient channel attention, with ends and on a ring, against the formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import CircularEfficientChannelAttention, EfficientChannelAttention
from tests.proof import draw, prove, variables_of

CLASSES = [EfficientChannelAttention, CircularEfficientChannelAttention]


def oracle(circular):
  def compute(p, x, train):
    del train
    kernel = p['conv/kernel'][:, 0, 0]
    channels, reach = x.shape[-1], len(kernel) // 2
    logits = np.zeros((len(x), 1, 1, channels))
    for image, out in zip(x, logits[:, 0, 0], strict=True):
      z = image.reshape(-1, channels).mean(0)
      for c in range(channels):
        for j, weight in enumerate(kernel):
          seen = c + j - reach
          if circular or 0 <= seen < channels:
            out[c] += weight * z[seen % channels]
    gates = 1 / (1 + np.exp(-logits))
    return x * gates, {'gate': gates}

  return compute


@pytest.mark.parametrize('kernel_size', [None, 1, 5])
@pytest.mark.parametrize('circular', [False, True])
def test_equals_the_formula(circular, kernel_size):
  prove(CLASSES[circular](kernel_size), oracle(circular))


def test_the_ring_goes_round_more_than_once():
  prove(CircularEfficientChannelAttention(9), oracle(True), shape=(2, 3, 5, 3))


@pytest.mark.parametrize('build', CLASSES)
def test_kernel_sizes(build):
  sizes = {4: 3, 16: 3, 64: 3, 96: 3, 128: 5, 192: 5, 512: 5, 1024: 5, 2048: 7}
  for channels, size in sizes.items():
    x = jnp.zeros((1, 1, 1, channels))
    variables = jax.eval_shape(lambda x=x: build().init(jax.random.key(0), x, train=False))
    shapes = jax.tree.map(lambda leaf: leaf.shape, variables)
    assert shapes == {'params': {'conv': {'kernel': (size, 1, 1)}}}


@pytest.mark.parametrize('build', CLASSES)
def test_gamma_and_beta(build):
  x = jnp.zeros((1, 1, 1, 256))
  module = build(gamma=1, beta=4)
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
  assert variables['params']['conv']['kernel'].shape == (13, 1, 1)


def gates(module, variables, x):
  return module.apply(variables, x, train=False).maps['gate'].weights


def test_both_agree_where_the_window_is_inside():
  x = draw()
  plain, ring = EfficientChannelAttention(5), CircularEfficientChannelAttention(5)
  variables = variables_of(plain, x)
  a, b = gates(plain, variables, x), gates(ring, variables, x)
  np.testing.assert_allclose(a[..., 2:-2], b[..., 2:-2], atol=1e-7)
  for end in (0, 1, -2, -1):
    assert np.abs(a[..., end] - b[..., end]).max() > 1e-3


def test_a_roll_of_the_channels_rolls_the_ring_only():
  x, rolled = draw(), jnp.roll(draw(), 4, axis=-1)
  for build, equal in zip(CLASSES, (False, True), strict=True):
    module = build(5)
    variables = variables_of(module, x)
    want = jnp.roll(gates(module, variables, x), 4, axis=-1)
    got = gates(module, variables, rolled)
    assert np.allclose(got, want, atol=1e-6) == equal


@pytest.mark.parametrize('build', CLASSES)
def test_an_even_kernel_is_refused(build):
  with pytest.raises(ValueError, match='kernel_size=4 must be odd'):
    build(4).init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)), train=False)
