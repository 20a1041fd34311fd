"""The update: what it computes, on one device and on eight, and what it refuses."""

import chex
import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jattn import training
from jattn.training.step import make_update
from jattn.types import Batch, Prediction
from tests.training.conftest import CLASSES, Tiny, Trainer, make_batch

EXACT = {'atol': 1e-5, 'rtol': 0}


def weights(state):
  return jax.device_get({'params': state.params, 'stats': state.stats})


@pytest.fixture(scope='module')
def twenty(trainer):
  state, metrics = trainer.run(trainer.state(), 20, size=16)
  return weights(state), metrics


def test_the_loss_falls(twenty):
  _, metrics = twenty
  assert metrics[-1].loss < 0.7 * metrics[0].loss
  assert metrics[-1].correct > metrics[0].correct


@pytest.mark.parametrize('fsdp', [1, 4])
def test_twenty_steps_on_eight_devices_equal_one(twenty, fsdp):
  """Batch norm included: its statistics are those of the whole batch."""
  eight = Trainer(devices=8, fsdp=fsdp)
  state, metrics = eight.run(eight.state(), 20)
  chex.assert_trees_all_close(weights(state), twenty[0], **EXACT)
  chex.assert_trees_all_close(metrics, twenty[1], atol=1e-4)


def test_large_parameters_are_split_along_fsdp_and_stay_split():
  optimizer = training.make_optimizer('adamw', 1e-2)
  mesh = training.make_mesh(fsdp=4)
  tree = {'kernel': jnp.zeros((64, 512)), 'odd': jnp.zeros((129, 129)), 'bias': jnp.zeros(512)}
  state = training.create_state(lambda key: {'params': tree}, optimizer, seed=0, mesh=mesh)
  assert state.params['kernel'].sharding.shard_shape((64, 512)) == (64, 128)
  assert state.params['odd'].sharding.is_fully_replicated
  assert state.params['bias'].sharding.is_fully_replicated
  assert state.opt_state[1][0].mu['kernel'].sharding.shard_shape((64, 512)) == (64, 128)

  def apply(variables, images, *, train, **_):
    x = images.reshape(images.shape[0], -1)[:, :64] @ variables['params']['kernel']
    return x[:, :CLASSES] + variables['params']['bias'][None, :CLASSES], {}

  step = training.make_train_step(apply, optimizer, mesh, num_classes=CLASSES)
  new, _ = step(state, training.place_batch(make_batch(0), mesh))
  assert new.params['kernel'].sharding.shard_shape((64, 512)) == (64, 128)


def test_pmap_around_the_update_of_one_device_gives_the_same_update():
  """``jit`` over a mesh is the successor of ``pmap``; without batch norm the two must agree."""
  trainer = Trainer(devices=4, module=Tiny(batch_norm=False))
  batch = make_batch(0)
  state = trainer.state()
  update = make_update(
    trainer.module.apply, trainer.optimizer, axis_name='devices', **trainer.settings
  )
  split = jax.tree.map(lambda x: x.reshape(4, 4, *x.shape[1:]), batch)
  copies = jax.tree.map(lambda x: np.stack([np.asarray(x)] * 4), jax.device_get(state))
  mapped, metrics = jax.pmap(update, axis_name='devices', devices=jax.devices()[:4])(copies, split)
  new, wanted = trainer.step(state, training.place_batch(batch, trainer.mesh))
  for device in range(4):
    mine = jax.tree.map(lambda x: np.asarray(x)[device], mapped.params)  # noqa: B023
    chex.assert_trees_all_close(mine, jax.device_get(new.params), **EXACT)
  np.testing.assert_allclose(metrics.loss[0], wanted.loss, rtol=1e-5)


def test_one_step_equals_optax_by_hand():
  module = Tiny(batch_norm=False)
  optimizer = optax.sgd(0.5)
  trainer = Trainer(module=module, optimizer=optimizer, label_smoothing=0.1)
  state, batch = trainer.state(), make_batch(0)
  mask = np.arange(16) < 11
  params = jax.device_get(state.params)

  def loss(params):
    logits = module.apply(
      {'params': params}, batch.images[:11].astype(np.float32) / 255, train=True
    )
    soft = 0.9 * jax.nn.one_hot(batch.labels[:11], CLASSES) + 0.1 / CLASSES
    return optax.softmax_cross_entropy(logits, soft).mean()

  wanted = jax.tree.map(lambda p, g: p - 0.5 * g, params, jax.jit(jax.grad(loss))(params))
  masked = batch.replace(mask=mask)
  new, metrics = trainer.step(state, training.place_batch(masked, trainer.mesh))
  chex.assert_trees_all_close(jax.device_get(new.params), wanted, atol=1e-6)
  assert metrics.count == 11
  np.testing.assert_allclose(metrics.loss / 11, loss(params), rtol=1e-5)


def test_accumulation_gives_the_gradient_of_the_whole_batch():
  module = Tiny(batch_norm=False)
  whole = Trainer(module=module, optimizer=optax.sgd(0.5))
  parts = Trainer(devices=2, module=module, optimizer=optax.sgd(0.5), accumulate=4)
  # An uneven mask: a mean of part means would be another number.
  batch = make_batch(0).replace(mask=np.arange(16) % 5 > 0)
  states = [
    t.step(t.state(), training.place_batch(batch, t.mesh))[0].params for t in (whole, parts)
  ]
  chex.assert_trees_all_close(*jax.device_get(states), atol=1e-6)
  with pytest.raises(ValueError, match='accumulate=4 must divide the batch of 6'):
    parts.step(parts.state(), training.place_batch(make_batch(0, size=6), parts.mesh))


def test_accumulation_runs_batch_norm_over_the_parts_in_turn():
  """Each part is normalised by itself, and the running statistics are fed one after another."""
  trainer = Trainer(optimizer=optax.sgd(0.5), accumulate=2, ema=True, ema_decay=0.5)
  state, batch = trainer.state(), make_batch(0)
  params, stats = jax.device_get((state.params, state.stats))

  @jax.jit
  def part(params, stats, images, labels):
    def loss(params):
      logits, new = trainer.module.apply(
        {'params': params, **stats}, images, train=True, mutable=['batch_stats']
      )
      return optax.softmax_cross_entropy_with_integer_labels(logits, labels).sum() / 16, new

    return jax.grad(loss, has_aux=True)(params)

  gradient = jax.tree.map(np.zeros_like, params)
  for first in (0, 1):  # the parts are every other image
    rows = slice(first, None, 2)
    images = batch.images[rows].astype(np.float32) / 255
    more, stats = part(params, stats, images, batch.labels[rows])
    gradient = jax.tree.map(np.add, gradient, more)
  wanted = jax.tree.map(lambda p, g: p - 0.5 * g, params, gradient)
  start = jax.device_get(state.ema)
  new, _ = trainer.step(state, training.place_batch(batch, trainer.mesh))
  chex.assert_trees_all_close(jax.device_get(new.params), wanted, atol=1e-5)
  chex.assert_trees_all_close(jax.device_get(new.stats), dict(stats), atol=1e-5)
  # The average is warmed up: at the first step a tenth of it stays.
  average = jax.tree.map(lambda a, b: 0.1 * a + 0.9 * b, start, {'params': wanted, **stats})
  chex.assert_trees_all_close(jax.device_get(new.ema), average, atol=1e-5)


def test_several_steps_in_one_call_equal_single_steps(twenty):
  trainer = Trainer()
  state = trainer.state()
  for call in range(4):
    batches = [make_batch(5 * call + i) for i in range(5)]
    stack = jax.tree.map(lambda *xs: np.stack(xs), *batches)
    state, metrics = trainer.step(state, training.place_batch(stack, trainer.mesh, leading=1))
    assert metrics.loss.shape == (5,)
  chex.assert_trees_all_close(weights(state), twenty[0], **EXACT)


def test_on_cpu_nothing_is_scanned(monkeypatch):
  """Convolution gradients inside a loop miss XLA's fast kernels there."""
  monkeypatch.setattr(jax.lax, 'scan', lambda *_, **__: pytest.fail('scanned'))
  trainer = Trainer(accumulate=2)
  stack = jax.tree.map(lambda *xs: np.stack(xs), make_batch(0), make_batch(1))
  trainer.step(trainer.state(), training.place_batch(stack, trainer.mesh, leading=1))


def test_what_a_step_returns_is_of_32_bits_also_where_the_session_knows_more():
  """Else a loop on the device would not take its own output."""
  trainer = Trainer(accumulate=2)
  state, batch = trainer.state(), make_batch(0)
  total, evaluate = training.Metrics.zeros(CLASSES), training.make_eval_step(trainer.module.apply)
  with jax.enable_x64(True):
    after, metrics = jax.eval_shape(trainer.step, state, batch)
    measured = jax.eval_shape(evaluate, state.variables, batch, total)
  for found, had in ((after, state), (measured, total)):
    assert jax.tree.map(lambda x: x.dtype, found) == jax.tree.map(lambda x: x.dtype, had)
  assert {str(leaf.dtype) for leaf in jax.tree.leaves(metrics)} == {'float32', 'int32'}


def test_the_scan_of_accelerators_gives_the_same_numbers(monkeypatch):
  stack = jax.tree.map(lambda *xs: np.stack(xs), make_batch(0), make_batch(1))
  found = []
  for backend in ('cpu', 'gpu'):
    monkeypatch.setattr(jax, 'default_backend', lambda backend=backend: backend)
    trainer = Trainer(accumulate=2)
    placed = training.place_batch(stack, trainer.mesh, leading=1)
    text = trainer.step.lower(trainer.state(), placed).as_text()
    assert ('stablehlo.while' in text) == (backend == 'gpu')
    found.append(jax.device_get(trainer.step(trainer.state(), placed)))
  chex.assert_trees_all_close(*found, **EXACT)


def test_augmentation_gets_the_prepared_images_and_soft_labels_and_a_key_of_the_step():
  seen = []

  def augment(key, images, labels):
    seen.append((images.dtype, labels.shape))
    shift = jax.random.uniform(key)
    return images * 0 + shift, jnp.roll(labels, 1, axis=-1)

  module = Tiny(batch_norm=False)
  kept = []

  def apply(variables, images, **settings):
    jax.debug.callback(lambda x: kept.append(float(x)), images[0, 0, 0, 0])
    return module.apply(variables, images, **settings)

  trainer = Trainer(module=module)
  step = training.make_train_step(
    apply, trainer.optimizer, trainer.mesh, num_classes=CLASSES, augment=augment
  )
  state = trainer.state()
  for _ in range(3):
    state, _ = step(state, training.place_batch(make_batch(0), trainer.mesh))
  jax.effects_barrier()
  assert seen == [(jnp.float32, (16, CLASSES))]
  assert len(set(kept)) == 3
  assert step._cache_size() == 1


def test_dropout_is_a_function_of_seed_and_step():
  trainer = Trainer(module=Tiny(batch_norm=False, dropout=0.5))
  batch = make_batch(0)

  def loss_at(seed, step):
    state = trainer.state().replace(step=jnp.int32(step), seed=jnp.uint32(seed))
    return float(trainer.step(state, training.place_batch(batch, trainer.mesh))[1].loss)

  assert loss_at(0, 3) == loss_at(0, 3)
  assert len({loss_at(0, 3), loss_at(0, 4), loss_at(1, 3)}) == 3


def poisoned(step):
  batch = make_batch(step)
  images = batch.images.astype(np.float32) / 255
  images[5, 2, 2, 0] = np.nan
  return batch.replace(images=images)


def test_a_bad_update_is_skipped_bitwise_and_counted():
  trainer = Trainer(ema=True, ema_decay=0.9)
  state, _ = trainer.run(trainer.state(), 2)
  before = jax.device_get(state)
  batch = jax.tree.map(lambda x: x, poisoned(2))
  state, metrics = trainer.step(state, training.place_batch(batch, trainer.mesh))
  after = jax.device_get(state)
  for field in ('params', 'stats', 'opt_state', 'ema'):
    chex.assert_trees_all_equal(getattr(after, field), getattr(before, field))
  assert (after.step, after.skipped, after.skipped_in_a_row) == (3, 1, 1)
  assert metrics.skipped == 1
  state, metrics = trainer.run(state, 1)
  assert (state.skipped, state.skipped_in_a_row, metrics[0].skipped) == (1, 0, 0)
  assert np.isfinite(jax.device_get(state.params)['Dense_0']['kernel']).all()


def test_after_too_many_bad_updates_in_a_row_the_state_waits():
  trainer = Trainer(max_skips=2)
  state, _ = trainer.run(trainer.state(), 1)
  before = jax.device_get(state.params)
  for step in (1, 2):
    state, _ = trainer.step(state, training.place_batch(poisoned(step), trainer.mesh))
  state, metrics = trainer.run(state, 2)
  chex.assert_trees_all_equal(jax.device_get(state.params), before)
  assert state.skipped_in_a_row == 4
  assert [m.skipped for m in metrics] == [1, 1]


def test_the_moving_average_is_its_closed_form():
  trainer = Trainer(module=Tiny(batch_norm=True), ema=True, ema_decay=0.5)
  state = trainer.state()
  average = jax.device_get({'params': state.params, **state.stats})
  for t in range(3):
    state, _ = trainer.run(state, 1)
    decay = min(0.5, (1 + t) / (10 + t))
    now = jax.device_get({'params': state.params, **state.stats})
    average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * p, average, now)
  chex.assert_trees_all_close(jax.device_get(state.eval_variables), average, atol=1e-6)
  assert set(state.eval_variables) == {'params', 'batch_stats'}


def test_the_moving_average_keeps_the_type_of_what_it_follows():
  """A count of images is no number to average, and a run goes on from types as they were."""
  variables = {'params': {'w': jnp.ones(2, jnp.bfloat16)}, 'batch_stats': {'seen': jnp.int32(3)}}
  optimizer = optax.sgd(0.5)
  state = training.state_of(flax.core.freeze(variables), optimizer, seed=0, ema=True)
  assert type(state.params) is type(state.stats) is type(state.ema) is dict

  def apply(variables, images, *, train, rngs=None, mutable=None):
    seen = variables['batch_stats']['seen'] + len(images)
    w = variables['params']['w'].astype(jnp.float32)
    logits = images.mean((1, 2, 3))[:, None] * w[None]
    return Prediction(logits, {}), {'batch_stats': {'seen': seen}}

  mesh = training.make_mesh(devices=jax.devices()[:1])
  step = training.make_train_step(apply, optimizer, mesh, num_classes=2, ema_decay=0.9)
  batch = Batch(jnp.ones((4, 2, 2, 3)), jnp.array([0, 1, 1, 1]), jnp.ones(4, bool))
  moved, _ = step(jax.tree.map(jnp.copy, state), batch)
  chex.assert_trees_all_equal_shapes_and_dtypes(moved, state)
  assert int(moved.ema['batch_stats']['seen']) == int(moved.stats['batch_stats']['seen']) == 7


def test_bfloat16_compute_keeps_float32_parameters():
  import jattn

  model = jattn.models.seed_classifier(
    CLASSES, image_size=8, widths=(4, 4, 8), hidden=8, dtype=jnp.bfloat16
  )
  trainer = Trainer(module=model)
  state = training.create_state(
    lambda key: model.init(key, jnp.zeros((1, 8, 8, 3)), train=False),
    trainer.optimizer,
    seed=0,
    mesh=trainer.mesh,
  )
  batch = make_batch(0)
  images = np.pad(batch.images, ((0, 0), (1, 1), (1, 1), (0, 0)))
  state, metrics = trainer.step(
    state, training.place_batch(batch.replace(images=images), trainer.mesh)
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype('float32')}
  assert np.isfinite(metrics.loss)


def test_a_model_with_another_number_of_classes_is_refused():
  trainer = Trainer(num_classes=CLASSES + 1)
  with pytest.raises(ValueError, match=r'logits \(16, 3\); the data needs \(16, 4\)'):
    trainer.run(trainer.state(), 1)


def test_a_batch_that_the_devices_cannot_share_is_refused():
  mesh = training.make_mesh()
  with pytest.raises(ValueError, match='batch of 12 cannot be split over 8 devices'):
    training.place_batch(make_batch(0, size=12), mesh)
  with pytest.raises(ValueError, match='fsdp=3 must divide the number of devices, 8'):
    training.make_mesh(fsdp=3)


def test_batch_fields_must_agree(trainer):
  batch = make_batch(0)
  bad = Batch(batch.images, batch.labels, batch.mask[:8])
  with pytest.raises(AssertionError):
    trainer.step(trainer.state(), training.place_batch(bad, trainer.mesh))
