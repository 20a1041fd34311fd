"""Everything that a training run must remember, as one pytree."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.core
import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jattn.training.mesh import state_sharding

Variables = Mapping[str, Any]


@flax.struct.dataclass
class TrainState:
  """A training run between two steps.

  Attributes:
    step: int32, batches seen, skipped ones included.
    params: float32 parameters.
    stats: the other variable collections by name (``{'batch_stats': ...}`` or ``{}``).
    opt_state: the optimizer's.
    ema: exponential moving average of ``{'params': ..., **stats}``, or None.
    seed: uint32; with ``step`` it decides dropout and augmentation.
    skipped: int32, updates skipped because something was not finite.
    skipped_in_a_row: int32, those since the last good update.
  """

  step: jax.Array
  params: Any
  stats: Any
  opt_state: optax.OptState
  ema: Any
  seed: jax.Array
  skipped: jax.Array
  skipped_in_a_row: jax.Array

  @property
  def variables(self) -> Variables:
    """What the model is applied with in training."""
    return {'params': self.params, **self.stats}

  @property
  def eval_variables(self) -> Variables:
    """What the model is evaluated with: the moving average if there is one."""
    return self.variables if self.ema is None else self.ema

  def key(self) -> jax.Array:
    """The random key of this step, a function of (seed, step) alone."""
    return jax.random.fold_in(jax.random.key(self.seed), self.step)


def state_of(
  variables: Variables, optimizer: optax.GradientTransformation, *, seed: int, ema: bool = False
) -> TrainState:
  """The state at step 0 with these variables; pure. Arguments as for ``create_state``."""
  stats = flax.core.unfreeze(variables)
  params = stats.pop('params')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    stats=stats,
    opt_state=optimizer.init(params),
    ema=jax.tree.map(jnp.copy, {'params': params, **stats}) if ema else None,
    seed=jnp.asarray(seed, jnp.uint32),
    skipped=jnp.zeros((), jnp.int32),
    skipped_in_a_row=jnp.zeros((), jnp.int32),
  )


def create_state(
  init: Callable[[jax.Array], Variables],
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  mesh: Mesh,
  ema: bool = False,
) -> TrainState:
  """Initialises a state directly where it will lie, so that no device ever holds it whole.

  Args:
    init: key -> variables, ``{'params': ..., ...}``.
    optimizer: an optax transform.
    seed: decides the parameters, dropout and augmentation.
    mesh: where the state lies (see ``state_sharding``).
    ema: whether to keep a moving average; it starts at the initial variables.
  """

  def create() -> TrainState:
    return state_of(init(jax.random.key(seed)), optimizer, seed=seed, ema=ema)

  return jax.jit(create, out_shardings=state_sharding(jax.eval_shape(create), mesh))()


def start_state(
  variables: Variables,
  optimizer: optax.GradientTransformation,
  *,
  seed: int,
  mesh: Mesh,
  ema: bool = False,
) -> TrainState:
  """A state that starts from variables at hand, those of a file for fine-tuning, say.

  Args:
    variables: ``{'params': ..., ...}``.
    optimizer, mesh, ema: as for ``create_state``.
    seed: decides dropout and augmentation.
  """

  def create(variables: Variables) -> TrainState:
    # A step is given its state for good: what was handed in stays the caller's.
    return state_of(jax.tree.map(jnp.copy, variables), optimizer, seed=seed, ema=ema)

  variables = jax.device_put(dict(variables), state_sharding(dict(variables), mesh))
  places = state_sharding(jax.eval_shape(create, variables), mesh)
  return jax.jit(create, out_shardings=places)(variables)
