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


def test_a_decay_may_end_above_zero_and_begin_at_zero():
  for decay in ('cosine', 'linear'):
    schedule = make_schedule(2.0, steps=10, decay=decay, end=0.5)
    found = [float(schedule(t)) for t in (0, 5, 10, 11)]
    assert found == pytest.approx([2.0, 1.25, 0.5, 0.5])
    assert float(make_schedule(0.0, steps=10, decay=decay)(3)) == 0


def test_steps_are_those_of_the_residual_network_on_cifar():
  """64,000 steps, a tenth of the rate from step 32,000 and again from 48,000 on."""
  schedule = make_schedule(0.1, steps=64_000, decay='step')
  at = {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
  assert {step: float(schedule(step)) for step in at} == pytest.approx(at)
  # Shares are of the whole run, its warm-up included.
  warmed = make_schedule(1.0, steps=100, warmup_steps=20, decay='step', drops=(0.3,), factor=0.5)
  at = {10: 0.5, 29: 1.0, 30: 0.5, 99: 0.5}
  assert {step: float(warmed(step)) for step in at} == pytest.approx(at)


@pytest.mark.parametrize(
  'settings',
  [
    {'warmup_steps': 30},
    {'decay': 'stairs'},
    {'decay': 'step', 'drops': ()},
    {'decay': 'step', 'drops': (0.75, 0.5)},
    {'decay': 'step', 'drops': (0.5, 1.0)},
  ],
)
def test_impossible_schedules_are_refused(settings):
  with pytest.raises(ValueError, match=f'{list(settings)[-1]}.* must '):
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


def updates(steps, gradient, params, **settings):
  """The updates of so many steps with one gradient, the parameters held still."""
  optimizer = make_optimizer(**settings)
  state, made = optimizer.init(params), []
  for _ in range(steps):
    changes, state = optimizer.update(gradient, state, params)
    made.append(changes)
  return made, state


def test_momentum_with_and_without_nesterov():
  gradient = jax.tree.map(jnp.ones_like, PARAMS)
  # Velocities 1, 1.9, 2.71; Nesterov looks one step ahead: gradient + 0.9 velocity.
  for nesterov, wanted in ((False, (1, 1.9, 2.71)), (True, (1.9, 2.71, 3.439))):
    made, _ = updates(3, gradient, PARAMS, name='sgd', schedule=0.1, nesterov=nesterov)
    np.testing.assert_allclose([m['bias'][0] for m in made], -0.1 * np.array(wanted), rtol=1e-6)


def test_decay_of_all_is_that_of_matrices_for_everything():
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  ((changes,), _) = updates(
    1, zero, PARAMS, name='adamw', schedule=0.1, weight_decay=0.5, decay_all=True
  )
  for leaf in jax.tree.leaves(changes):
    np.testing.assert_allclose(leaf, -0.1 * 0.5 * 2.0, rtol=1e-6)


NETWORK = {
  'backbone': dict.fromkeys(('stem', 'stage_0_block_0', 'stage_0_block_1'), PARAMS),
  'head': PARAMS,
}
SETTINGS = {'schedule': 0.1, 'weight_decay': 0.5, 'clip_norm': 3.0}


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_layer_decay_scales_the_whole_update(name):
  """Weight decay, momentum and clipping included; the head moves as it would without."""
  gradient = jax.tree.map(jnp.ones_like, NETWORK)
  plain, _ = updates(3, gradient, NETWORK, name=name, **SETTINGS)
  scaled, _ = updates(3, gradient, NETWORK, name=name, layer_decay=0.5, **SETTINGS)
  for ours, theirs in zip(scaled, plain, strict=True):
    wanted = {
      'backbone': {
        layer: jax.tree.map(lambda u, p=power: u * 0.5**p, theirs['backbone'][layer])
        for layer, power in (('stem', 3), ('stage_0_block_0', 2), ('stage_0_block_1', 1))
      },
      'head': theirs['head'],
    }
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours, wanted)
  with pytest.raises(ValueError, match='layer decay=0 must be in'):
    make_optimizer(name, 0.1, layer_decay=0)


@pytest.mark.parametrize('name', ['adamw', 'sgd'])
def test_frozen_parameters_have_no_update_and_no_moments(name):
  gradient = jax.tree.map(jnp.ones_like, NETWORK)
  ((changes,), state) = updates(
    1, gradient, NETWORK, name=name, freeze='stage_0/block_0', layer_decay=0.5, **SETTINGS
  )
  for layer, moves in (('stem', 0), ('stage_0_block_0', 0), ('stage_0_block_1', 1)):
    for leaf in jax.tree.leaves(changes['backbone'][layer]):
      assert bool((leaf != 0).all()) == bool(moves), layer
  assert (changes['head']['kernel'] != 0).all()
  moments = [path for path, _ in jax.tree_util.tree_leaves_with_path(state) if 'stem' in str(path)]
  assert not moments
  with pytest.raises(ValueError, match="nothing is called 'stage_7'"):
    make_optimizer(name, 0.1, freeze='stage_7').init(NETWORK)
