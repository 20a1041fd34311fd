"""Pooling against hand-made numbers and a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jattn import ops
from tests import oracles


@pytest.fixture
def features(rng):
  return jnp.asarray(rng.normal(size=(2, 3, 5, 7)), jnp.float32)


@pytest.fixture
def weights(rng):
  raw = rng.normal(size=(2, 4, 3, 5))
  exponentials = np.exp(raw)
  return jnp.asarray(exponentials / exponentials.sum(axis=(2, 3), keepdims=True), jnp.float32)


def test_weighted_average_equals_the_loop(features, weights):
  got = ops.weighted_average(features, weights)
  assert got.shape == (2, 4, 7)
  for b in range(2):
    np.testing.assert_allclose(
      got[b], oracles.pooled(features[b], np.asarray(weights[b])), atol=1e-6
    )


def test_weighted_average_in_x64(rng):
  with jax.enable_x64(True):
    x, a = rng.normal(size=(1, 3, 5, 7)), rng.random(size=(1, 2, 3, 5))
    got = ops.weighted_average(jnp.asarray(x), jnp.asarray(a))
    np.testing.assert_allclose(got[0], oracles.pooled(x[0], a[0]), atol=1e-12)


def test_uniform_weights_are_the_global_average(features):
  uniform = jnp.full((2, 1, 3, 5), 1 / 15)
  np.testing.assert_allclose(
    ops.weighted_average(features, uniform)[:, 0], ops.global_average(features), atol=1e-6
  )


def test_aggregate_is_the_map_times_the_features_then_pooled(features, weights):
  product = np.asarray(weights)[..., None] * np.asarray(features)[:, None]
  average = ops.attention_aggregate(features, weights, reduce='average')
  largest = ops.attention_aggregate(features, weights, reduce='max')
  both = ops.attention_aggregate(features, weights, reduce='both')
  np.testing.assert_allclose(average, product.mean(axis=(2, 3)), atol=1e-6)
  np.testing.assert_allclose(largest, product.max(axis=(2, 3)), atol=1e-6)
  np.testing.assert_array_equal(both, np.concatenate([average, largest], axis=-1))
  # The two mechanisms of the tutorial meet: the average of the product is v / N.
  np.testing.assert_allclose(average, ops.weighted_average(features, weights) / 15, atol=1e-6)


def test_aggregate_refuses_an_unknown_reduction(features, weights):
  with pytest.raises(ValueError, match='average'):
    ops.attention_aggregate(features, weights, reduce='sum')


def test_masked_positions_take_no_part(features, rng):
  mask = jnp.asarray(rng.random((2, 3, 5)) < 0.5)
  noise = jnp.where(mask[..., None], features, 1e6)
  for pool in (ops.global_average, ops.global_max):
    np.testing.assert_array_equal(pool(features, mask=mask), pool(noise, mask=mask))
  kept = np.asarray(features[0])[np.asarray(mask[0])]
  np.testing.assert_allclose(ops.global_average(features, mask=mask)[0], kept.mean(0), atol=1e-6)
  np.testing.assert_allclose(ops.global_max(features, mask=mask)[0], kept.max(0), atol=1e-6)
  nothing = jnp.zeros((2, 3, 5), bool)
  assert np.all(np.asarray(ops.global_max(features, mask=nothing)) == 0)
  assert np.all(np.asarray(ops.global_average(features, mask=nothing)) == 0)


@pytest.mark.parametrize('masked', [False, True])
def test_what_is_largest_at_many_positions_shares_one_gradient(masked):
  """Such as a channel that ReLU made zero; bfloat16 cannot count to 4,096 one by one."""
  x = jnp.zeros((1, 64, 64, 2), jnp.bfloat16)
  mask = jnp.ones((1, 64, 64), bool) if masked else None
  assert ops.global_max(x, mask=mask).dtype == jnp.bfloat16
  share = jax.jit(jax.grad(lambda x: ops.global_max(x, mask=mask).astype(jnp.float32).sum()))(x)
  assert (share == 1 / 4096).all()


def test_flatten_keeps_rows_first_and_channels_last():
  x = jnp.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
  assert ops.flatten(x)[1, (2 * 5 + 4) * 7 + 6] == x[1, 2, 4, 6]


def test_masked_softmax_closed_form_and_axes():
  got = ops.masked_softmax(jnp.log(jnp.array([[1.0, 3.0], [4.0, 8.0]])), axis=(0, 1))
  np.testing.assert_allclose(got, [[1 / 16, 3 / 16], [4 / 16, 8 / 16]], rtol=1e-6)
  masked = ops.masked_softmax(jnp.array([0.0, 5.0, 0.0]), mask=jnp.array([True, False, True]))
  np.testing.assert_array_equal(masked, [0.5, 0.0, 0.5])


def test_masked_softmax_of_nothing_has_a_zero_gradient():
  mask = jnp.zeros(3, bool)
  gradient = jax.grad(lambda s: ops.masked_softmax(s, mask=mask)[0])(jnp.ones(3))
  np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize('side', [4, 5])
def test_max_pool_equals_reduce_window_in_value_and_gradient(rng, side):
  x = jnp.asarray(rng.normal(size=(2, side, 7, 3)), jnp.float32)

  def reference(x):
    start = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, start, start, 'VALID')

  np.testing.assert_array_equal(ops.max_pool(x), reference(x))
  got, want = (jax.grad(lambda x, f=f: jnp.sin(f(x)).sum())(x) for f in (ops.max_pool, reference))
  np.testing.assert_allclose(got, want, atol=1e-7)


def test_max_pool_refuses_a_map_smaller_than_its_window():
  with pytest.raises(ValueError, match='window=4 is larger than the 3x5'):
    ops.max_pool(jnp.zeros((1, 3, 5, 1)), window=4)


def test_normalize_is_by_channel_and_takes_bytes():
  images = jnp.array([[[[0, 51, 255]]]], jnp.uint8)
  got = ops.normalize(images, mean=(0.5, 0.1, 0.0), std=(0.25, 0.1, 2.0))
  np.testing.assert_allclose(got, [[[[-2.0, 1.0, 0.5]]]], rtol=1e-6)
  np.testing.assert_allclose(
    ops.normalize(ops.to_float(images), mean=(0.5, 0.1, 0.0), std=(0.25, 0.1, 2.0)), got
  )
  with pytest.raises(ValueError, match='3 numbers'):
    ops.normalize(images, mean=(0.5,), std=(0.5,))
  with pytest.raises(ValueError, match='positive'):
    ops.normalize(images, mean=(0, 0, 0), std=(1, 0, 1))


def test_max_pool_in_forward_mode_twice_and_under_vmap(rng):
  x, along = (jnp.asarray(rng.normal(size=(2, 5, 7, 3)), jnp.float32) for _ in range(2))

  def reference(x):
    start = (1, 2, 2, 1)
    return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, start, start, 'VALID')

  def turned(pool):
    def gradient(x):
      return jax.grad(lambda x: jnp.sin(pool(x)).sum())(x)

    return jax.jvp(gradient, (x,), (along,))[1], jax.vmap(gradient)(jnp.stack([x, along]))

  for got, want in zip(*map(turned, (ops.max_pool, reference)), strict=True):
    np.testing.assert_allclose(got, want, atol=1e-6)


@pytest.mark.parametrize('axis', [-1, (1, 2)])
@pytest.mark.parametrize('keepdims', [False, True])
def test_largest_is_numpy_s_and_its_gradient_that_of_jax(features, axis, keepdims):
  found, slope = jax.value_and_grad(lambda x: (ops.largest(x, axis, keepdims=keepdims) ** 2).sum())(
    features
  )
  want = np.asarray(features).max(axis, keepdims=keepdims)
  np.testing.assert_allclose(found, (want**2).sum(), rtol=1e-6)
  np.testing.assert_array_equal(ops.largest(features, axis, keepdims=keepdims), want)
  np.testing.assert_allclose(
    slope, jax.grad(lambda x: (jnp.max(x, axis) ** 2).sum())(features), rtol=1e-6
  )
  check_grads(lambda x: ops.largest(x, axis), (features,), 2, eps=1e-3)


def test_a_maximum_that_is_nowhere_has_no_gradient():
  """As where a compiler computes features twice and rounds them in two ways; NaN stands for it."""
  slope = jax.grad(lambda x: ops.largest(x, 0))(jnp.array([1.0, jnp.nan]))
  assert slope.tolist() == [0, 0]


@pytest.mark.parametrize('window', [0, -1])
def test_a_window_has_at_least_one_position(window):
  with pytest.raises(ValueError, match=f'window={window} must be at least 1'):
    ops.max_pool(jnp.ones((1, 4, 4, 1)), window=window)
