"""One update and one evaluation step, compiled for a mesh."""

import functools
from collections.abc import Callable
from typing import Any, Protocol

import chex
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jattn.ops import to_float
from jattn.training.mesh import replicated, state_sharding
from jattn.training.metrics import Metrics, measure, smooth
from jattn.training.state import TrainState, Variables
from jattn.types import Batch

Prepare = Callable[[jax.Array], jax.Array]
Augment = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Apply(Protocol):
  """A Linen module's ``apply``; it may return logits [B, L] or anything that has ``.logits``."""

  def __call__(
    self, variables: Variables, images: jax.Array, *, train: bool, **settings: Any
  ) -> Any: ...


@flax.struct.dataclass
class StepMetrics:
  """What one update tells, as device scalars; a stack of them when a call makes several updates.

  ``loss`` and ``correct`` are sums over ``count`` examples.
  """

  count: jax.Array
  loss: jax.Array
  correct: jax.Array
  gradient_norm: jax.Array
  skipped: jax.Array
  skipped_in_a_row: jax.Array


def make_update(
  apply: Apply,
  optimizer: optax.GradientTransformation,
  *,
  num_classes: int,
  prepare: Prepare = to_float,
  augment: Augment | None = None,
  label_smoothing: float = 0.0,
  accumulate: int = 1,
  ema_decay: float | None = None,
  max_skips: int = 3,
  axis_name: str | None = None,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
  """Returns the pure update ``(state, batch) -> (state, metrics)``, not yet compiled.

  The loss is the cross-entropy of the unmasked rows, its mean over the whole batch; an augmentation
  that mixes rows takes partners masked or not. If the loss or the gradient is not finite,
  everything but the counters stays bitwise as it was; once ``max_skips`` updates in a row were
  skipped, all later ones are skipped too, so the state waits as it is for the loop to notice.

  Args:
    apply: the model.
    optimizer: an optax transform.
    num_classes: L; the model must give as many logits, or a ValueError says so.
    prepare: images as loaded -> what the model takes.
    augment: ``(key, images, labels [B, L]) -> (images, labels)``, after ``prepare``.
    label_smoothing: mass spread evenly over the classes.
    accumulate: into how many parts the batch is cut, one after another, to save memory. The
      gradient is that of the whole batch; batch norm sees the parts.
    ema_decay: of the moving average; warmed up as ``min(decay, (1 + t) / (10 + t))``.
    max_skips: see above.
    axis_name: the mapped axis when the update runs on one device's part of the batch under
      ``pmap`` or ``shard_map``; None when it sees the whole batch (under ``jit`` on a mesh).
  """

  def across(tree: Any, reduce: Callable = jax.lax.psum) -> Any:
    return tree if axis_name is None else reduce(tree, axis_name)

  def loss_of(params, stats, images, labels, mask, count, key):
    predicted, new_stats = apply(
      {'params': params, **stats}, images, train=True, rngs={'dropout': key}, mutable=list(stats)
    )
    logits = getattr(predicted, 'logits', predicted)
    _check_logits(logits, images.shape[0], num_classes)
    losses = optax.softmax_cross_entropy(logits, smooth(labels, label_smoothing))
    total = jnp.sum(jnp.where(mask, losses, 0))
    hits = jnp.argmax(logits, axis=-1) == jnp.argmax(labels, axis=-1)
    correct = jnp.sum(jnp.where(mask, hits, False), dtype=jnp.int32)
    return total / count, (dict(new_stats), total, correct)

  def update(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    chex.assert_equal_shape_prefix((batch.images, batch.labels, batch.mask), 1)
    augment_key, dropout_key = jax.random.split(state.key())
    if axis_name is not None:
      index = jax.lax.axis_index(axis_name)
      augment_key = jax.random.fold_in(augment_key, index)
      dropout_key = jax.random.fold_in(dropout_key, index)
    images = prepare(batch.images)
    labels = jax.nn.one_hot(batch.labels, num_classes, dtype=jnp.float32)
    if augment is not None:
      images, labels = augment(augment_key, images, labels)
    count = jnp.maximum(across(jnp.sum(batch.mask)), 1).astype(jnp.float32)

    def add_part(carry, part):
      stats, gradient, loss, correct = carry
      index, images, labels, mask = part
      key = jax.random.fold_in(dropout_key, index)
      part_gradient, (stats, part_loss, part_correct) = jax.grad(loss_of, has_aux=True)(
        state.params, stats, images, labels, mask, count, key
      )
      gradient = jax.tree.map(jnp.add, gradient, part_gradient)
      return (stats, gradient, loss + part_loss, correct + part_correct)

    parts = _cut((images, labels, batch.mask), accumulate)
    start = (
      state.stats,
      jax.tree.map(jnp.zeros_like, state.params),
      jnp.zeros((), jnp.float32),
      jnp.zeros((), jnp.int32),
    )
    stats, gradient, loss, correct = _fold(add_part, start, (jnp.arange(accumulate), *parts))
    gradient, loss, correct = across((gradient, loss, correct))
    stats = across(stats, jax.lax.pmean)

    norm = optax.tree.norm(gradient)
    good = jnp.isfinite(loss) & jnp.isfinite(norm) & (state.skipped_in_a_row < max_skips)
    changes, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, changes)
    ema = state.ema
    if ema is not None and ema_decay is not None:
      decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
      # In this form what does not move leaves its average as it is, bit for bit.
      ema = jax.tree.map(functools.partial(_average, 1 - decay), ema, {'params': params, **stats})
    old = (state.params, state.stats, state.opt_state, state.ema)
    params, stats, opt_state, ema = jax.tree.map(
      lambda new, previous: jnp.where(good, new, previous), (params, stats, opt_state, ema), old
    )
    skipped = jnp.where(good, 0, 1).astype(jnp.int32)
    state = state.replace(
      step=state.step + 1,
      params=params,
      stats=stats,
      opt_state=opt_state,
      ema=ema,
      skipped=state.skipped + skipped,
      skipped_in_a_row=jnp.where(good, 0, state.skipped_in_a_row + 1),
    )
    return state, StepMetrics(count, loss, correct, norm, skipped, state.skipped_in_a_row)

  return update


def make_train_step(
  apply: Apply,
  optimizer: optax.GradientTransformation,
  mesh: Mesh,
  *,
  num_classes: int,
  **settings: Any,
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
  """Returns the update compiled for a mesh; the state given to it is donated (do not use it again).

  The same code runs on one device or many: the batch is split over the mesh, the loss, the gradient
  and batch norm's statistics are those of the whole batch, and the compiler adds the communication.

  A stack of batches, [S, B, ...], makes S updates in one call and gives a stack of metrics: for
  accelerators, where starting a call costs as much as a small step.

  Args:
    apply, optimizer, num_classes, settings: as for ``make_update``.
    mesh: the devices.
  """
  update = make_update(apply, optimizer, num_classes=num_classes, **settings)

  def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
    stacked = batch.labels.ndim == 2
    state, metrics = _scan(update, state, batch) if stacked else update(state, batch)
    return jax.lax.with_sharding_constraint(
      (state, metrics),
      (state_sharding(state, mesh), jax.tree.map(lambda _: replicated(mesh), metrics)),
    )

  return jax.jit(step, donate_argnums=0)


def make_eval_step(
  apply: Apply, *, prepare: Prepare = to_float, label_smoothing: float = 0.0
) -> Callable[[Variables, Batch, Metrics], Metrics]:
  """Returns the compiled ``(variables, batch, metrics so far) -> metrics``."""

  def step(variables: Variables, batch: Batch, metrics: Metrics) -> Metrics:
    predicted = apply(variables, prepare(batch.images), train=False)
    logits = getattr(predicted, 'logits', predicted)
    _check_logits(logits, batch.labels.shape[0], metrics.confusion.shape[0])
    return metrics + measure(logits, batch, label_smoothing=label_smoothing)

  return jax.jit(step)


def _check_logits(logits: jax.Array, rows: int, num_classes: int) -> None:
  if logits.shape != (rows, num_classes):
    raise ValueError(f'the model gives logits {logits.shape}; the data needs {(rows, num_classes)}')


def _cut(tree: Any, parts: int) -> Any:
  """[B, ...] -> [parts, B / parts, ...]; every device keeps an even share of every part."""

  def cut(x: jax.Array) -> jax.Array:
    if x.shape[0] % parts:
      raise ValueError(f'accumulate={parts} must divide the batch of {x.shape[0]}')
    return jnp.moveaxis(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 1, 0)

  return jax.tree.map(cut, tree)


def _fold(body: Callable, carry: Any, parts: Any) -> Any:
  return _scan(lambda carry, part: (body(carry, part), None), carry, parts)[0]


def _scan(body: Callable, carry: Any, parts: Any) -> tuple[Any, Any]:
  """``lax.scan``, unrolled where a loop would be slow.

  XLA on CPU rewrites convolution gradients for its fast kernels only outside loops; inside one they
  run many times slower. A single part needs no loop anywhere.
  """
  length = jax.tree.leaves(parts)[0].shape[0]
  if length > 1 and jax.default_backend() != 'cpu':
    return jax.lax.scan(body, carry, parts)
  outputs = []
  for index in range(length):
    carry, output = body(carry, jax.tree.map(lambda x: x[index], parts))  # noqa: B023
    outputs.append(output)
  return carry, jax.tree.map(lambda *xs: jnp.stack(xs), *outputs)


def _average(share: jax.Array, old: jax.Array, new: jax.Array) -> jax.Array:
  """A moving average in its own type; of whole numbers, such as a count, the newest."""
  if not jnp.issubdtype(old.dtype, jnp.inexact):
    return new
  return (old + share * (new - old)).astype(old.dtype)
