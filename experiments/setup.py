"""From a configuration to the objects that train and evaluate it."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import jattn
from experiments.config import TrainConfig
from experiments.environment import devices
from experiments.errors import ConfigError, InputError
from jattn import training
from jattn.data import DataError, augment
from jattn.ops import normalize


@dataclasses.dataclass(frozen=True)
class DataFacts:
  """What a model must know of the data it was trained on, to be used without that data."""

  name: str
  fingerprint: str
  num_classes: int
  class_names: tuple[str, ...]
  size: int
  mean: tuple[float, ...]
  std: tuple[float, ...]
  train_examples: int

  @classmethod
  def of(cls, dataset: Any) -> 'DataFacts':
    return cls(
      name=dataset.name,
      fingerprint=dataset.fingerprint,
      num_classes=dataset.num_classes,
      class_names=tuple(dataset.class_names),
      size=dataset.size,
      mean=tuple(dataset.mean),
      std=tuple(dataset.std),
      train_examples=dataset.num_examples('train'),
    )

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> 'DataFacts':
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


@dataclasses.dataclass(frozen=True)
class Setup:
  """The parts of a run."""

  model: nn.Module
  mesh: Mesh
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  prepare: Callable
  steps: int
  steps_per_epoch: int
  facts: DataFacts
  config: TrainConfig

  def create_state(self) -> training.TrainState:
    return training.create_state(
      self._init, self.optimizer, seed=self.config.seed, mesh=self.mesh, ema=self.has_ema
    )

  def abstract_state(self) -> Any:
    """Shapes, types and placement of the state, without computing it."""
    shapes = jax.eval_shape(self.create_state)
    places = training.state_sharding(shapes, self.mesh)
    return jax.tree.map(
      lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
      shapes,
      places,
    )

  @property
  def has_ema(self) -> bool:
    return self.config.ema_decay is not None

  @property
  def steps_per_call(self) -> int:
    return self.config.steps_per_call or (1 if jax.default_backend() == 'cpu' else 8)

  def train_step(self) -> Callable:
    config = self.config
    return training.make_train_step(
      self.model.apply,
      self.optimizer,
      self.mesh,
      num_classes=self.facts.num_classes,
      prepare=self.prepare,
      augment=make_augment(config),
      label_smoothing=config.label_smoothing,
      accumulate=config.accumulate,
      ema_decay=config.ema_decay,
      max_skips=config.max_skips,
    )

  def eval_step(self) -> Callable:
    return training.make_eval_step(
      self.model.apply, prepare=self.prepare, label_smoothing=self.config.label_smoothing
    )

  def _init(self, key: jax.Array) -> Any:
    size = self.facts.size
    return self.model.init(key, jnp.zeros((1, size, size, 3)), train=False)


def check_devices(config: TrainConfig) -> None:
  """Refuses a model that does not exist or a batch that the devices cannot share.

  Raises:
    ConfigError: naming the flag.
  """
  make_model(config, num_classes=2)
  count = len(devices())
  if count % config.fsdp:
    raise ConfigError(f'--fsdp {config.fsdp} must divide the number of devices, {count}')
  if config.batch_size % (count * config.accumulate):
    raise ConfigError(
      f'--batch-size {config.batch_size} must be a multiple of devices x --accumulate, '
      f'{count} x {config.accumulate}'
    )


def make_model(config: TrainConfig, *, num_classes: int) -> nn.Module:
  """The model that the configuration names, its attention and its pooling.

  Raises:
    ConfigError: a name that does not exist, or a model without such a slot.
  """
  slots = {'attention': config.attention, 'pool': config.pool}
  settings = {slot: name for slot, name in slots.items() if name is not None}
  dtype = jnp.bfloat16 if config.precision == 'bfloat16' else None
  try:
    return jattn.create_model(config.model, num_classes=num_classes, dtype=dtype, **settings)
  except ValueError as error:
    chosen = {'model': config.model, **settings}
    flags = ' '.join(f'--{slot} {name}' for slot, name in chosen.items())
    raise ConfigError(f'{flags}: {error}') from None


def load_data(config: TrainConfig) -> Any:
  """Loads the data set that the configuration names.

  Raises:
    InputError: it is missing, damaged or badly labelled.
  """
  try:
    return jattn.data.load(config.data, data_dir=config.data_dir)
  except DataError as error:
    raise InputError(f'--data {config.data}: {error}') from None


def make_setup(config: TrainConfig, facts: DataFacts) -> Setup:
  """Builds the parts.

  Raises:
    ConfigError: the model cannot take the data, or the run is shorter than its warm-up.
  """
  steps_per_epoch = max(facts.train_examples // config.batch_size, 1)
  steps = config.steps or math.floor(config.epochs * facts.train_examples / config.batch_size)
  if steps < 1:
    raise ConfigError(f'--epochs {config.epochs} of {facts.train_examples} images make no step')
  schedule = training.make_schedule(
    config.optimizer.learning_rate,
    steps=steps,
    warmup_steps=int(config.optimizer.warmup * steps),
    decay=config.optimizer.decay,
  )
  setup = Setup(
    model=make_model(config, num_classes=facts.num_classes),
    mesh=training.make_mesh(devices=devices(), fsdp=config.fsdp),
    optimizer=training.make_optimizer(
      config.optimizer.name,
      schedule,
      weight_decay=config.optimizer.weight_decay,
      momentum=config.optimizer.momentum,
      clip_norm=config.optimizer.clip_norm,
    ),
    schedule=schedule,
    prepare=functools.partial(normalize, mean=facts.mean, std=facts.std),
    steps=steps,
    steps_per_epoch=steps_per_epoch,
    facts=facts,
    config=config,
  )
  try:
    jax.eval_shape(setup.create_state)
  except ValueError as error:
    raise ConfigError(f'--model {config.model} on --data {config.data}: {error}') from None
  return setup


def make_augment(config: TrainConfig) -> Callable | None:
  """The augmentations that are switched on, one after another; None when none is."""
  chosen, settings = [], config.augment
  if settings.crop_padding:
    chosen.append(functools.partial(augment.pad_and_crop, padding=settings.crop_padding))
  if settings.flip:
    chosen.append(augment.flip)
  if settings.erasing:
    chosen.append(functools.partial(augment.random_erasing, probability=settings.erasing))
  if settings.mixup:
    chosen.append(functools.partial(augment.mixup, alpha=settings.mixup))
  if settings.cutmix:
    chosen.append(functools.partial(augment.cutmix, alpha=settings.cutmix))
  return augment.compose(*chosen) if chosen else None
