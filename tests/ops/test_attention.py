"""Query-key-value attention against closed forms and a loop in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops import attend, attention_weights, weigh
from tests import oracles

E = float(np.e)


def draw(rng, *, heads=(2, 2), queries=5, keys=7, width=3, value_width=4, leading=()):
  q = rng.normal(size=(*leading, queries, heads[0], width))
  k = rng.normal(size=(*leading, keys, heads[1], width))
  v = rng.normal(size=(*leading, keys, heads[1], value_width))
  return q, k, v


def test_closed_form():
  # Scores are q k / sqrt(1) = 0 and 1, so the weights are 1/(1+e) and e/(1+e).
  q, k = jnp.array([[[1.0]]]), jnp.array([[[0.0]], [[1.0]]])
  v = jnp.array([[[0.0, 10.0]], [[1.0, 20.0]]])
  np.testing.assert_allclose(attention_weights(q, k), [[[1 / (1 + E), E / (1 + E)]]], rtol=1e-6)
  np.testing.assert_allclose(attend(q, k, v), [[[E / (1 + E), (10 + 20 * E) / (1 + E)]]], rtol=1e-6)


def test_the_scale_is_one_over_the_root_of_the_key_width():
  # Four equal products of one: 4 / sqrt(4) = 2.
  q, k = jnp.ones((1, 1, 4)), jnp.stack([jnp.zeros((1, 4)), jnp.ones((1, 4))])
  np.testing.assert_allclose(attention_weights(q, k)[0, 0, 1], E**2 / (1 + E**2), rtol=1e-6)
  np.testing.assert_allclose(attention_weights(q, k, scale=0.0)[0, 0], [0.5, 0.5])


@pytest.mark.parametrize('heads', [(1, 1), (4, 4), (4, 2), (6, 1)])
@pytest.mark.parametrize('extra', ['plain', 'bias', 'mask', 'both', 'scale'])
def test_equals_the_loop_in_both_precisions(rng, heads, extra):
  q, k, v = draw(rng, heads=heads)
  shape = (heads[0], 5, 7)
  settings = {}
  if extra in ('bias', 'both'):
    settings['bias'] = rng.normal(size=shape)
  if extra in ('mask', 'both'):
    settings['mask'] = rng.random(shape) < 0.6
    settings['mask'][0, 2] = False
  if extra == 'scale':
    settings['scale'] = 1.7
  want_weights = oracles.attention_weights(q, k, **settings)
  want = oracles.attend(q, k, v, **settings)

  def run(dtype):
    # The oracle sees the same rounded numbers.
    arrays = [jnp.asarray(x, dtype) for x in (q, k, v)]
    given = {n: jnp.asarray(x, dtype) if n == 'bias' else x for n, x in settings.items()}
    return attention_weights(*arrays[:2], **given), attend(*arrays, **given)

  with jax.enable_x64(True):
    weights, out = run(jnp.float64)
    assert weights.dtype == out.dtype == jnp.float64
    np.testing.assert_allclose(weights, want_weights, atol=1e-12, rtol=0)
    np.testing.assert_allclose(out, want, atol=1e-12, rtol=0)
  q, k, v = (x.astype(np.float32).astype(np.float64) for x in (q, k, v))
  if 'bias' in settings:
    settings['bias'] = settings['bias'].astype(np.float32).astype(np.float64)
  weights, out = run(jnp.float32)
  np.testing.assert_allclose(
    weights, oracles.attention_weights(q, k, **settings), atol=1e-6, rtol=0
  )
  np.testing.assert_allclose(out, oracles.attend(q, k, v, **settings), atol=1e-6, rtol=0)


@pytest.mark.parametrize('leading', [(), (3,), (2, 3)])
def test_leading_dimensions_are_independent(rng, leading):
  q, k, v = (x.astype(np.float32) for x in draw(rng, leading=leading))
  out = attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v))
  assert out.shape == (*leading, 5, 2, 4)
  for index in np.ndindex(leading):
    np.testing.assert_allclose(out[index], oracles.attend(q[index], k[index], v[index]), atol=1e-6)


def test_one_key_head_is_that_head_repeated(rng):
  q, k, v = (jnp.asarray(x) for x in draw(rng, heads=(6, 1)))
  repeated = attend(q, jnp.repeat(k, 6, axis=1), jnp.repeat(v, 6, axis=1))
  np.testing.assert_allclose(attend(q, k, v), repeated, atol=1e-6)


def test_a_mask_is_a_truncation(rng):
  q, k, v = (jnp.asarray(x) for x in draw(rng))
  mask = jnp.arange(7) < 4
  np.testing.assert_allclose(attend(q, k, v, mask=mask), attend(q, k[:4], v[:4]), atol=1e-6)
  assert np.all(np.asarray(attention_weights(q, k, mask=mask))[..., 4:] == 0)


@pytest.mark.parametrize('by', ['mask', 'bias'])
def test_a_fully_masked_row_is_zero_in_value_and_finite_in_gradient(rng, by):
  q, k, v = (jnp.asarray(x) for x in draw(rng))
  allowed = jnp.broadcast_to((jnp.arange(5) != 3)[None, :, None], (2, 5, 7))
  given = {'mask': allowed} if by == 'mask' else {'bias': jnp.where(allowed, 0.0, -jnp.inf)}
  out = attend(q, k, v, **given)
  assert np.all(np.asarray(out[3]) == 0)
  assert np.all(np.asarray(out[2]) != 0)
  gradients = jax.grad(lambda *x: attend(*x, **given).sum(), argnums=(0, 1, 2))(q, k, v)
  assert all(np.isfinite(g).all() for g in gradients)
  assert np.all(np.asarray(gradients[0][3]) == 0)


def test_gradients_equal_finite_differences(rng):
  with jax.enable_x64(True):
    arrays = [jnp.asarray(x) for x in draw(rng, heads=(4, 2))]
    probe = jnp.asarray(rng.normal(size=(5, 4, 4)))
    directions = [jnp.asarray(rng.normal(size=x.shape)) for x in arrays]

    def f(t):
      return (attend(*[x + t * d for x, d in zip(arrays, directions, strict=True)]) * probe).sum()

    numeric = (f(1e-5) - f(-1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(f)(0.0), numeric, rtol=1e-6)


@pytest.mark.parametrize('factor', [1, 1e3])
def test_bfloat16_keeps_float32_weights_and_stays_finite(rng, factor):
  q, k, v = (jnp.asarray(x * factor, jnp.bfloat16) for x in draw(rng, width=32))
  weights, out = attention_weights(q, k), attend(q, k, v)
  assert weights.dtype == jnp.float32
  assert out.dtype == jnp.bfloat16
  assert np.isfinite(np.asarray(out, np.float32)).all()
  np.testing.assert_allclose(np.asarray(weights).sum(-1), 1, atol=1e-6)
  # Products of bfloat16 numbers are exact in float32, so the weights are too.
  np.testing.assert_allclose(
    weights, oracles.attention_weights(np.asarray(q, float), np.asarray(k, float)), atol=1e-5
  )


def test_weigh_takes_any_weights():
  weights = jnp.array([[[0.25, 0.75]], [[2.0, 0.0]]])
  v = jnp.array([[[4.0], [1.0]], [[8.0], [5.0]]])
  np.testing.assert_allclose(weigh(weights, v), [[[7.0], [2.0]]])


def test_bad_shapes_are_refused(rng):
  q, k, v = (jnp.asarray(x) for x in draw(rng, heads=(4, 4)))
  with pytest.raises(ValueError, match='num_key_heads=3 must divide num_heads=4'):
    attend(q, k[:, :3], v[:, :3])
  with pytest.raises(AssertionError):
    attend(q, k[..., :2], v)
  with pytest.raises(AssertionError):
    attend(q, k, v[:5])
  with pytest.raises(AssertionError):
    attend(q[None], k, v)


def test_weights_of_bfloat16_are_float32_where_no_type_is_promoted_by_itself():
  with jax.numpy_dtype_promotion('strict'):
    weights = attention_weights(*jnp.ones((2, 3, 1, 4), jnp.bfloat16))
  assert weights.dtype == jnp.float32
  np.testing.assert_allclose(weights, np.full((1, 3, 3), 1 / 3), rtol=1e-6)


@pytest.mark.parametrize('implementation', ['dense', 'chunked'])
def test_what_would_be_misread_is_refused(implementation):
  q = k = v = jnp.ones((4, 2, 8))
  attend_by = functools.partial(attend, q, k, v, implementation=implementation)
  additive = jnp.zeros((4, 4)).at[:, 2].set(-jnp.inf)
  for mask in (additive, lambda i, j: jnp.zeros((1, len(i), len(j)))):
    with pytest.raises(ValueError, match='mask must be bool.* not float32'):
      jax.eval_shape(lambda mask=mask: attend_by(mask=mask))
  with pytest.raises(ValueError, match=r'scale must be one number, not of shape \(2, 1, 1\)'):
    attend_by(scale=jnp.ones((2, 1, 1)))
  with pytest.raises(ValueError, match=r'queries must be \[..., Q, M, D\], not of shape \(2, 8\)'):
    attend(q[0], k[0], v[0], implementation=implementation)
  assert np.isfinite(attend_by(scale=jnp.float32(0.5))).all()
