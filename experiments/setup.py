"""From a configuration to the objects that train and evaluate it."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

import jattn
from experiments.augmentation import make_augmentation
from experiments.environment import devices
from experiments.errors import ConfigError, InputError
from experiments.settings import TrainConfig
from jattn import training
from jattn.data import DataError
from jattn.ops import normalize

# Mean and deviation by channel; ImageNet's are those that torchvision and timm use.
_NORMALIZATIONS = {
  'imagenet': ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
  'half': ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


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
  def of(cls, dataset: Any, *, normalization: str = 'data') -> 'DataFacts':
    """The facts of a loaded data set; with mean and deviation of its images or fixed ones."""
    mean, std = (
      (dataset.mean, dataset.std) if normalization == 'data' else _NORMALIZATIONS[normalization]
    )
    return cls(
      name=dataset.name,
      fingerprint=dataset.fingerprint,
      num_classes=dataset.num_classes,
      class_names=tuple(dataset.class_names),
      size=dataset.eval_size,
      mean=tuple(mean),
      std=tuple(std),
      train_examples=dataset.num_examples('train'),
    )

  @classmethod
  def from_json(cls, values: dict[str, Any]) -> 'DataFacts':
    return cls(**{key: tuple(v) if isinstance(v, list) else v for key, v in values.items()})


@dataclasses.dataclass(frozen=True)
class Setup:
  """The parts of a run.

  Attributes:
    prepare: bytes to the numbers that the model takes.
    shapes: of the variables whose shape is not the model's own, by path: tables of positions out of
      a file, which are resized when the model is applied.
  """

  model: nn.Module
  mesh: Mesh
  optimizer: optax.GradientTransformation
  schedule: optax.Schedule
  prepare: Callable
  steps: int
  steps_per_epoch: int
  facts: DataFacts
  config: TrainConfig
  shapes: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)

  def create_state(self, variables: Any | None = None) -> training.TrainState:
    """The state at step 0, with these variables or as the model starts them."""
    settings = {'seed': self.config.seed, 'mesh': self.mesh, 'ema': self.has_ema}
    if variables is None:
      return training.create_state(self._init, self.optimizer, **settings)
    return training.start_state(variables, self.optimizer, **settings)

  def variable_shapes(self) -> dict[str, Any]:
    """Shapes and types of the variables, ``{'params': ...}``."""
    own = flax.traverse_util.flatten_dict(jax.eval_shape(self._init, jax.random.key(0)), sep='/')
    for path, shape in self.shapes.items():
      own[path] = jax.ShapeDtypeStruct(tuple(shape), own[path].dtype)
    return flax.traverse_util.unflatten_dict(own, sep='/')

  def abstract_state(self) -> Any:
    """Shapes, types and placement of the state, without computing it."""
    begin = functools.partial(
      training.state_of, optimizer=self.optimizer, seed=self.config.seed, ema=self.has_ema
    )
    shapes = jax.eval_shape(begin, self.variable_shapes())
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
    apply = self.model.apply
    if config.freeze is not None:
      apply = training.freeze(apply, config.freeze)
    return training.make_train_step(
      apply,
      self.optimizer,
      self.mesh,
      num_classes=self.facts.num_classes,
      augment=make_augmentation(config.augment, self.facts.size, self.prepare),
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
  _check_layers(config, make_model(config, num_classes=2))
  count = len(devices())
  if count % config.fsdp:
    raise ConfigError(f'--fsdp {config.fsdp} must divide the number of devices, {count}')
  if config.batch_size % (count * config.accumulate):
    raise ConfigError(
      f'--batch-size {config.batch_size} must be a multiple of devices x --accumulate, '
      f'{count} x {config.accumulate}'
    )


def _check_layers(config: TrainConfig, model: nn.Module) -> None:
  """Refuses rates of layers and frozen layers that the model has not, before any data is read."""
  decay, place = config.optimizer.layer_decay, config.freeze
  if decay == 1 and place is None:
    return
  side = config.image_size or jattn.models.FACTS[config.model].image_size
  images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
  params = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)['params']
  for flag, value, attempt in (
    (
      '--optimizer.layer-decay',
      decay,
      lambda: decay != 1 and training.layer_scales(params, decay),
    ),
    ('--freeze', place, lambda: place and training.Layers.of(params).through(place)),
  ):
    try:
      attempt()
    except ValueError as error:
      raise ConfigError(f'{flag} {value}, --model {config.model}: {error}') from None


def make_model(config: TrainConfig, *, num_classes: int) -> nn.Module:
  """The model that the configuration names, its attention and its pooling.

  Raises:
    ConfigError: a name that does not exist, or a model without such a slot.
  """
  settings: dict[str, Any] = {}
  if config.attention is not None:
    settings['attention'] = None if config.attention == 'none' else config.attention
  if config.pool is not None:
    settings['pool'] = config.pool
  if config.drop_path is not None:
    settings['drop_path'] = config.drop_path
  if config.mimetic is not None:
    settings['mimetic'] = config.mimetic or None
  if config.image_size is not None and 'image_size' in _settings_of(config.model):
    settings['image_size'] = config.image_size
  dtype = jnp.bfloat16 if config.precision == 'bfloat16' else None
  try:
    return jattn.create_model(config.model, num_classes=num_classes, dtype=dtype, **settings)
  except ValueError as error:
    chosen = {'model': config.model, **settings}
    flags = ' '.join(f'--{slot.replace("_", "-")} {name}' for slot, name in chosen.items())
    raise ConfigError(f'{flags}: {error}') from None


def _settings_of(model: str) -> Collection[str]:
  """What the model of this name can be told; nothing where there is none of it."""
  make = jattn.models.MODELS.get(model)
  return inspect.signature(make).parameters if make is not None else ()


def load_data(config: TrainConfig) -> Any:
  """Loads the data set that the configuration names.

  Random resized crops are taken from squares as large as evaluation resizes to, or --store-size.

  Raises:
    InputError: it is missing, damaged or badly labelled.
    ConfigError: it cannot be read in this way.
  """
  size = config.image_size
  if size is not None and config.augment.crop_area is not None:
    size = config.store_size or math.floor(size / config.crop_ratio)
  try:
    return jattn.data.load(
      config.data,
      data_dir=config.data_dir,
      size=size,
      eval_size=config.image_size,
      crop_ratio=config.crop_ratio,
      resample=config.resample,
      in_memory=config.in_memory,
      workers=config.workers,
    )
  except DataError as error:
    told = str(error).removeprefix(f'{config.data}: ')
    raise InputError(f'--data {config.data}: {told}') from None
  except ValueError as error:
    raise ConfigError(f'--data {config.data}: {error}') from None


def make_setup(
  config: TrainConfig, facts: DataFacts, *, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> Setup:
  """Builds the parts.

  Args:
    config: the run.
    facts: its data.
    shapes: as ``Setup.shapes``.

  Raises:
    ConfigError: the model cannot take the data, or the run is shorter than its warm-up.
  """
  steps_per_epoch = max(facts.train_examples // config.batch_size, 1)
  steps = config.steps or config.epochs * facts.train_examples / config.batch_size
  if steps >= 2**31:
    asked = f'--steps {steps}' if config.steps else f'--epochs {config.epochs:g}'
    raise ConfigError(f'{asked}: {steps:.1e} steps are more than can be counted')
  steps = math.floor(steps)
  if config.augment.crop_padding >= facts.size:
    raise ConfigError(
      f'--augment.crop-padding {config.augment.crop_padding} must be below the side of the images, '
      f'{facts.size}'
    )
  if steps < 1:
    raise ConfigError(f'--epochs {config.epochs} of {facts.train_examples} images make no step')
  chosen = config.optimizer
  schedule = training.make_schedule(
    chosen.learning_rate,
    steps=steps,
    warmup_steps=int(chosen.warmup * steps),
    decay=chosen.decay,
    drops=chosen.drops,
  )
  setup = Setup(
    model=make_model(config, num_classes=facts.num_classes),
    mesh=training.make_mesh(devices=devices(), fsdp=config.fsdp),
    optimizer=training.make_optimizer(
      chosen.name,
      schedule,
      weight_decay=chosen.weight_decay,
      decay_all=chosen.decay_all,
      momentum=chosen.momentum,
      nesterov=chosen.nesterov,
      clip_norm=chosen.clip_norm,
      layer_decay=chosen.layer_decay,
      freeze=config.freeze,
    ),
    schedule=schedule,
    prepare=functools.partial(normalize, mean=facts.mean, std=facts.std),
    steps=steps,
    steps_per_epoch=steps_per_epoch,
    facts=facts,
    config=config,
    shapes=shapes or {},
  )
  try:
    setup.abstract_state()
  except ValueError as error:
    raise ConfigError(f'--model {config.model} on --data {config.data}: {error}') from None
  return setup
