"""Schedules in closed form; decay that leaves biases and norms alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.training import make_optimizer, make_schedule


def test_cosine_and_linear_in_closed_form():
  cosine = make_schedule(2.0, steps=30, warmup_steps=10)
  linear = make_schedule(2.0, steps=30, warmup_steps=10, decay='linear')
  constant = make_schedule(2.0, steps=30, warmup_steps=10, decay='constant')
  for t in range(10):
    assert float(cosine(t)) == pytest.approx(2 * t / 10)
  for t in range(10, 31):
    done = (t - 10) / 20
    assert float(cosine(t)) == pytest.approx(1 + np.cos(np.pi * done), abs=1e-6)
    assert float(linear(t)) == pytest.approx(2 * (1 - done), abs=1e-6)
    assert float(constant(t)) == 2


@pytest.mark.parametrize('settings', [{'warmup_steps': 30}, {'decay': 'step'}])
def test_impossible_schedules_are_refused(settings):
  with pytest.raises(ValueError, match='must be'):
    make_schedule(1.0, steps=30, **settings)


PARAMS = {'kernel': jnp.full((2, 3), 2.0), 'bias': jnp.full(3, 2.0), 'scale': jnp.full(3, 2.0)}


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_weight_decay_touches_matrices_only(name):
  optimizer = make_optimizer(name, 0.1, weight_decay=0.5)
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  changes, _ = optimizer.update(zero, optimizer.init(PARAMS), PARAMS)
  # Nesterov's first step is gradient + momentum * gradient.
  factor = 1.9 if name == 'sgd' else 1.0
  np.testing.assert_allclose(changes['kernel'], -0.1 * 0.5 * 2.0 * factor, rtol=1e-5)
  np.testing.assert_array_equal(changes['bias'], 0)
  np.testing.assert_array_equal(changes['scale'], 0)


def test_clipping_is_by_the_global_norm():
  optimizer = make_optimizer('sgd', 1.0, momentum=0.0, clip_norm=1.0)
  gradient = {'kernel': jnp.zeros((2, 3)).at[0, 0].set(3.0), 'bias': jnp.array([4.0, 0, 0])}
  params = {name: PARAMS[name] for name in gradient}
  changes, _ = optimizer.update(gradient, optimizer.init(params), params)
  np.testing.assert_allclose(changes['kernel'][0, 0], -0.6, rtol=1e-6)
  np.testing.assert_allclose(changes['bias'][0], -0.8, rtol=1e-6)


def test_an_unknown_optimizer_is_refused():
  with pytest.raises(ValueError, match="name='adam'"):
    make_optimizer('adam', 0.1)
