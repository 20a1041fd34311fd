"""A frozen prefix: not a bit of it moves, and it normalises as in evaluation."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import training
from jattn.training.depth import Frozen, Layers
from tests.training.conftest import CLASSES, make_batch

PLACE = 'stage_0'


@pytest.fixture(scope='module')
def model():
  # Rematerialised blocks: the frozen batch norms must be found inside them too.
  return jattn.models.resnet_cifar(CLASSES, depth=8, widths=(4, 6, 6), remat=True)


@pytest.fixture(scope='module')
def moved(model):
  """The state before and after three steps in which everything could move."""
  optimizer = training.make_optimizer('adamw', 0.05, weight_decay=0.1, freeze=PLACE)
  mesh = training.make_mesh(devices=jax.devices()[:2])
  state = training.create_state(
    lambda key: model.init(key, jnp.zeros((1, 6, 6, 3)), train=False),
    optimizer,
    seed=0,
    mesh=mesh,
    ema=True,
  )
  # Statistics away from their start, so that using them differs from using the batch's.
  state = state.replace(stats=jax.tree.map(lambda x: x + 0.3, state.stats))
  before = jax.device_get(state)
  step = training.make_train_step(
    training.freeze(model.apply, PLACE),
    optimizer,
    mesh,
    num_classes=CLASSES,
    accumulate=2,
    ema_decay=0.9,
  )
  for index in range(3):
    state, metrics = step(state, training.place_batch(make_batch(index), mesh))
  return before, jax.device_get(state), metrics


def flat(tree):
  return flax.traverse_util.flatten_dict(dict(tree), sep='/')


def test_what_is_frozen_is_bit_equal_and_the_rest_moved(moved):
  before, after, metrics = moved
  frozen = Frozen(Layers.of(before.params), PLACE)
  both = [
    (before.params, after.params),
    (before.stats['batch_stats'], after.stats['batch_stats']),
    # The average of the statistics began elsewhere: at the initial ones.
    (before.ema['params'], after.ema['params']),
  ]
  for old, new in both:
    old, new = flat(old), flat(new)
    assert {frozen(path) for path in old} == {True, False}
    for path in old:
      assert np.array_equal(old[path], new[path]) == frozen(path), path
  assert metrics.skipped == 0


def test_frozen_batch_norms_use_the_running_statistics(model, moved):
  _, state, _ = moved
  images = make_batch(9).images.astype(np.float32) / 255

  def logits(place, train):
    apply = model.apply if place is None else training.freeze(model.apply, place)
    settings = {'mutable': ['batch_stats']} if train else {}
    found = jax.jit(lambda v, x: apply(v, x, train=train, **settings))(state.variables, images)
    return (found[0] if train else found).logits

  evaluated = logits(None, False)
  np.testing.assert_allclose(logits('backbone', True), evaluated, atol=1e-5)
  assert np.abs(logits(PLACE, True) - evaluated).max() > 0.01, 'the rest uses the batch'
  assert np.abs(logits(PLACE, True) - logits(None, True)).max() > 0.01


def test_a_place_that_is_not_there_is_refused(model, moved):
  before, _, _ = moved
  with pytest.raises(ValueError, match="nothing is called 'stage_9'"):
    training.freeze(model.apply, 'stage_9')(before.variables, jnp.zeros((1, 6, 6, 3)), train=True)
