"""The sprint at a small width: its parts against what they should do, and a whole run."""

import json

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax.contrib import scale_by_muon

from experiments import cifar_sprint, sprint_parts
from experiments.errors import ConfigError, InputError


@pytest.fixture(scope='module')
def images():
  rng = np.random.default_rng(0)
  rough = rng.normal(size=(300, 8, 8, 3)).repeat(4, axis=1).repeat(4, axis=2)
  return jnp.asarray(rough + 0.3 * rng.normal(size=(300, 32, 32, 3)), jnp.float32)


def test_whitened_patches_are_uncorrelated_and_of_variance_one(images):
  kernel = sprint_parts.whitening_kernel(images, epsilon=0.0)
  assert kernel.shape == (2, 2, 3, 24)
  np.testing.assert_array_equal(kernel[..., :12], -kernel[..., 12:])
  numbers = ('NHWC', 'HWIO', 'NHWC')
  y = jax.lax.conv_general_dilated(images, kernel, (1, 1), 'VALID', dimension_numbers=numbers)
  y = np.asarray(y, np.float64).reshape(-1, 24)[:, :12]
  np.testing.assert_allclose(y.T @ y / len(y), np.eye(12), atol=2e-3)


def test_dirac_filters_pass_their_channel_on():
  kernel = sprint_parts.dirac(jax.random.key(0), (3, 3, 4, 6))
  x = jax.random.normal(jax.random.key(1), (2, 5, 5, 4))
  numbers = ('NHWC', 'HWIO', 'NHWC')
  y = jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=numbers)
  np.testing.assert_allclose(y[..., :4], x, atol=1e-6)
  rest = np.abs(kernel[..., 4:])
  assert 0 < rest.max() <= (9 * 4) ** -0.5


def filters():
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = {'conv_0': (3, 3, 4, 6), 'conv_1': (3, 3, 6, 6), 'conv_2': (3, 3, 6, 6)}
  return {
    name: jax.random.normal(key, shape)
    for key, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def test_filters_of_one_shape_together_move_as_each_alone():
  params = filters()
  inner = scale_by_muon(ns_steps=3, beta=0.6, weight_dimension_numbers=sprint_parts._matrices)
  together = sprint_parts._stacked(inner)
  alone = scale_by_muon(
    ns_steps=3,
    beta=0.6,
    weight_dimension_numbers=lambda tree: jax.tree.map(
      lambda _: optax.contrib.MuonDimensionNumbers((0, 1, 2), 3), tree
    ),
  )
  states = together.init(params), alone.init(params)
  for turn in range(3):
    gradients = jax.tree.map(lambda p, turn=turn: jnp.sin(p * (turn + 1)), params)
    (a, first), (b, second) = (
      rule.update(gradients, state, params)
      for rule, state in zip((together, alone), states, strict=True)
    )
    states = first, second
    for name in params:
      np.testing.assert_allclose(a[name], b[name], atol=1e-5)


def test_a_filter_bank_is_scaled_before_its_update_is_added():
  params = filters()
  change = jax.tree.map(jnp.ones_like, params)
  rule = sprint_parts._renormed()
  updates, _ = rule.update(change, rule.init(params), params)
  for name, p in optax.apply_updates(params, updates).items():
    scaled = params[name] * p.shape[-1] ** 0.5 / jnp.linalg.norm(params[name].ravel())
    np.testing.assert_allclose(p, scaled + 1, atol=1e-5)


@pytest.fixture(scope='module')
def file(tmp_path_factory):
  """Classes that differ in colour, so that a few steps tell them apart."""
  rng = np.random.default_rng(0)
  labels = rng.integers(0, 3, 240)
  colours = np.eye(3)[labels][:, None, None] * 90 + 60
  images = (colours + rng.normal(size=(240, 32, 32, 3)) * 20).clip(0, 255).astype(np.uint8)
  path = tmp_path_factory.mktemp('sprint') / 'colours.npz'
  np.savez(
    path, x_train=images[:200], y_train=labels[:200], x_test=images[200:], y_test=labels[200:]
  )
  return path


@pytest.mark.parametrize('pool', ['max', 'weighted_average'])
def test_a_small_run_learns_and_writes_its_line(pool, file, tmp_path, capsys):
  out = tmp_path / 'lines.jsonl'
  small = ['--width', '0.05', '--epochs', '2', '--batch-size', '50', '--runs', '1']
  command = ['--data', f'npz:{file}', *small, '--pool', pool, '--out', str(out)]
  assert cifar_sprint.main(command) == 0
  (line,) = map(json.loads, out.read_text().splitlines())
  assert line['accuracy'] > 0.8
  assert line['pool'] == pool
  assert len(line['all_seconds']) == 1
  assert 'run 0: ' in capsys.readouterr().out


def test_a_whole_epoch_in_one_dispatch_is_the_steps_one_by_one(file):
  chosen = cifar_sprint.Arguments(
    data=f'npz:{file}', width=0.05, epochs=1, batch_size=20, images=40
  )
  sprint = cifar_sprint.Sprint(chosen, cifar_sprint._load(chosen))
  images, labels = sprint.data['train']
  key, found = jax.random.key(1), []
  for scanned in (False, True):
    state = sprint.start(sprint.init(jax.random.key(0)), images)
    if scanned:
      state = sprint.epoch(state, images, labels, key, 0)
    else:
      for batch in zip(*sprint.shuffled(images, labels, key, 0), strict=True):
        state = sprint.step(state, batch)
    found.append(state[0]['params'])
  start = sprint.init(jax.random.key(0))['params']
  # Newton-Schulz makes small directions large, and their rounding with them: up to 0.06 of what a
  # layer moved. A batch taken twice moves all layers together by 0.4, another order by 1.2.
  (one, other, before), _ = zip(*map(jax.flatten_util.ravel_pytree, (*found, start)), strict=True)
  assert np.linalg.norm(one - other) < 0.2 * np.linalg.norm(one - before)


def test_images_are_standardised(file):
  chosen = cifar_sprint.Arguments(data=f'npz:{file}', width=0.05, batch_size=100)
  sprint = cifar_sprint.Sprint(chosen, cifar_sprint._load(chosen))
  x = np.asarray(sprint._standardised(sprint.data['train'][0]))
  np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=1e-3)
  np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=1e-3)


def test_flips_turn_over_from_epoch_to_epoch(file):
  chosen = cifar_sprint.Arguments(data=f'npz:{file}', width=0.05, batch_size=100)
  sprint = cifar_sprint.Sprint(chosen, cifar_sprint._load(chosen))
  size = 200
  slope = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None], (size, 32, 32, 3)).copy()
  turned = []
  for epoch in (0, 1, 2):
    x, rows = sprint.shuffled(slope, jnp.arange(size), jax.random.key(0), epoch)
    x, rows = np.asarray(x).reshape(size, 32, 32, 3), np.asarray(rows).ravel()
    rises = x[:, 16, 28, 0] > x[:, 16, 4, 0]
    turned.append(rises[np.argsort(rows)])
    assert sorted(rows) == list(range(size))
  np.testing.assert_array_equal(turned[0], ~turned[1])
  np.testing.assert_array_equal(turned[0], turned[2])
  assert 0.3 < turned[0].mean() < 0.7


@pytest.mark.parametrize(
  ('arguments', 'error', 'message'),
  [
    (['--runs', '0'], ConfigError, '--runs must be'),
    (['--pool', 'maxi'], ConfigError, '--pool maxi: choose max or'),
    (['--data', 'npz:/nowhere.npz'], InputError, 'nowhere'),
  ],
)
def test_what_cannot_run_is_refused(arguments, error, message):
  with pytest.raises(error, match=message):
    cifar_sprint.main(arguments)
