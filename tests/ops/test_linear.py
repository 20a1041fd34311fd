"""Linear attention as mathematics: the explicit table of weights, scales and zeros."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops import linear_attend, linear_weights, scaled_exponentials


def drawn(rng):
  q, k, v = (rng.uniform(0.1, 1, size=shape) for shape in ((4, 3, 5), (6, 3, 5), (6, 3, 2)))
  return q, k, v


@pytest.mark.parametrize('eps', [0.0, 0.7])
def test_equals_the_explicit_table(rng, eps):
  q, k, v = drawn(rng)
  table = np.einsum('qmd,kmd->mqk', q, k)
  table /= table.sum(-1, keepdims=True) + eps
  with jax.enable_x64(True):
    np.testing.assert_allclose(linear_weights(q, k, eps=eps), table, atol=1e-14)
    want = np.einsum('mqk,kme->qme', table, v)
    np.testing.assert_allclose(linear_attend(*map(jnp.asarray, (q, k, v)), eps=eps), want, 1e-13)


def test_scaling_leaves_the_weights_and_their_gradient(rng):
  q, k, _ = drawn(rng)
  log_q, log_k, probe = jnp.log(q), jnp.log(k), rng.normal(size=(3, 4, 6))

  def plain(log_q, log_k):
    return (linear_weights(jnp.exp(log_q), jnp.exp(log_k)) * probe).sum()

  def scaled(log_q, log_k):
    return (linear_weights(*scaled_exponentials(log_q, log_k)) * probe).sum()

  np.testing.assert_allclose(scaled(log_q, log_k), plain(log_q, log_k), rtol=1e-5)
  shifts = (log_q - 500.0, log_k - 500.0)
  got = jax.jit(jax.grad(scaled, (0, 1)))(*shifts)
  want = jax.jit(jax.grad(plain, (0, 1)))(log_q, log_k)
  for a, b in zip(got, want, strict=True):
    # Logarithms of -500 are rounded to 3e-5.
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_a_query_that_meets_no_key_gives_zeros_and_a_finite_gradient():
  q, k, v = jnp.array([[[1.0, 0.0]]]), jnp.array([[[0.0, 1.0]]] * 2), jnp.ones((2, 1, 3))
  np.testing.assert_array_equal(linear_attend(q, k, v), 0)
  np.testing.assert_array_equal(linear_weights(q, k), 0)
  gradient = jax.jit(jax.grad(lambda *a: linear_attend(*a).sum(), (0, 1, 2)))(q, k, v)
  assert all(np.isfinite(g).all() for g in gradient)
