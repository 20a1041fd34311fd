"""What a training run is told, as frozen dataclasses; imports neither jax nor jattn.

A configuration is JSON and comes back from JSON through the same flags that a person types, so a
file is checked as strictly as a command line.
"""

import dataclasses
import json
import pathlib
import re
from collections.abc import Sequence
from typing import Any, Literal

import tyro

from experiments.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How the parameters move."""

  name: Literal['adamw', 'sgd'] = 'adamw'
  """adamw, or sgd with Nesterov momentum."""
  learning_rate: float = 1e-3
  """Peak learning rate, reached after the warm-up."""
  warmup: float = 0.1
  """Share of the steps in which the rate rises linearly from zero, in [0, 1)."""
  decay: Literal['cosine', 'linear', 'constant'] = 'cosine'
  """How the rate falls to zero after the warm-up."""
  weight_decay: float = 0.05
  """Decoupled weight decay (adamw) or L2 (sgd); biases and norms are left alone."""
  momentum: float = 0.9
  """Nesterov momentum of sgd; adamw ignores it."""
  clip_norm: float | None = 1.0
  """Largest global norm of a gradient; None does not clip."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """What happens to training images on the device, in this order."""

  crop_padding: int = 0
  """Reflect-pad by so many pixels and crop back at random; 0 is off."""
  flip: bool = False
  """Mirror left and right with probability one half."""
  erasing: float = 0.0
  """Probability of erasing a random rectangle; 0 is off."""
  mixup: float = 0.0
  """Alpha of mixup; 0 is off."""
  cutmix: float = 0.0
  """Alpha of CutMix; 0 is off."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One training run."""

  out: pathlib.Path | None = None
  """Run directory; None is runs/MODEL-DATA-seedN. The same command again resumes it."""
  model: str = 'seed_classifier'
  """Name of the model, as jattn.list_models() gives them."""
  attention: str | None = None
  """Mechanism in the model's slot, of jattn.list_attentions(); None is the model's own."""
  pool: str | None = None
  """Pooling of the model, of jattn.list_poolings(); None is the model's own."""
  data: str = 'digits'
  """digits, tfds:NAME, folder:PATH or npz:PATH."""
  data_dir: pathlib.Path | None = None
  """Where prepared TFDS data lies; None is TFDS_DATA_DIR or TFDS's own place."""
  epochs: float = 10.0
  """Passes over the training images; --steps wins over it."""
  steps: int | None = None
  """Optimizer steps; None follows from --epochs."""
  batch_size: int = 128
  """Images in a step, over all devices."""
  seed: int = 0
  """Decides initialisation, order of images, augmentation and dropout."""
  precision: Literal['float32', 'bfloat16'] = 'float32'
  """What layers compute in; parameters stay float32."""
  label_smoothing: float = 0.0
  """Label mass spread evenly over the classes, in [0, 1)."""
  ema_decay: float | None = None
  """Decay of a moving average of the weights, which is then what is evaluated; None is off."""
  accumulate: int = 1
  """Cut each batch into so many parts, to save memory."""
  steps_per_call: int | None = None
  """Updates in one call of the device; None is 1 on CPU and 8 elsewhere."""
  fsdp: int = 1
  """Devices that share one copy of the parameters."""
  max_skips: int = 3
  """Stop after so many updates in a row were skipped because something was not finite."""
  log_every: int = 50
  """Steps between two lines of training metrics."""
  evaluate_every: int | None = None
  """Steps between evaluations on the choose split; None is one epoch."""
  checkpoint_every: int | None = None
  """Steps between checkpoints; None is one epoch."""
  keep: int = 2
  """Newest checkpoints to keep, besides the best on the choose split."""
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)


_DIGITS = TrainConfig(
  epochs=8,
  batch_size=32,
  label_smoothing=0.1,
  ema_decay=0.99,
  log_every=125,
  augment=AugmentConfig(crop_padding=3),
)
_CIFAR10 = TrainConfig(data='tfds:cifar10', augment=AugmentConfig(crop_padding=4, flip=True))
_ARMS = {
  '': 'seed_classifier',
  '_no_attention': 'seed_classifier_no_attention',
  '_weighted_average': 'seed_classifier_weighted_average',
}

PRESETS: dict[str, TrainConfig] = {
  preset + arm: dataclasses.replace(config, model=model)
  for preset, config in (('digits', _DIGITS), ('cifar10', _CIFAR10))
  for arm, model in _ARMS.items()
}

# What may differ between a run and its resumption without changing a single weight.
FREE = ('out', 'data_dir', 'log_every', 'evaluate_every', 'checkpoint_every', 'keep')


def parse(arguments: Sequence[str], *, program: str = 'python -m experiments.train') -> TrainConfig:
  """Reads a command line: ``[PRESET | --config FILE] [flags]``; no argument is the digits preset.

  Raises:
    ConfigError: an unknown preset, a file that is no configuration, or a bad combination.
    SystemExit: a flag that does not exist or does not parse (code 2), or ``--help`` (code 0).
  """
  rest = list(arguments)
  base, name = PRESETS['digits'], 'digits'
  if rest and not rest[0].startswith('-'):
    name = rest.pop(0)
    if name not in PRESETS:
      raise ConfigError(f'no preset is called {name!r}; there are {", ".join(PRESETS)}')
    base = PRESETS[name]
  for index, argument in enumerate(rest):
    if argument == '--config' or argument.startswith('--config='):
      taken = rest[index : index + (1 if '=' in argument else 2)]
      if len(taken) == 1 and '=' not in argument:
        raise ConfigError('--config needs the path of a config.json')
      del rest[index : index + len(taken)]
      base, name = load(pathlib.Path(taken[-1].removeprefix('--config='))), 'the file'
      break
  description = (
    'Trains an attention classifier and shows where it looked. '
    f'Presets, as first argument: {", ".join(PRESETS)}. '
    f'--config FILE starts from the config.json of a run instead. Defaults below are of {name}.'
  )
  config = _cli(rest, base, program, description)
  check(config)
  return config


def load(path: pathlib.Path) -> TrainConfig:
  """Reads a config.json; every key is checked as the flag of its name would be.

  Raises:
    ConfigError: the file cannot be read, is not a JSON object, or has a key or value that is wrong.
  """
  try:
    stored = json.loads(path.read_text())
  except OSError as error:
    raise ConfigError(f'cannot read {path}: {error.strerror}') from None
  except ValueError as error:
    raise ConfigError(f'{path} is not JSON: {error}') from None
  if not isinstance(stored, dict):
    raise ConfigError(f'{path} must hold a JSON object')
  try:
    return _cli(list(_flags(stored)), TrainConfig(), str(path), None)
  except SystemExit:
    raise ConfigError(f'{path} is not a configuration of this version (see above)') from None


def to_json(config: TrainConfig) -> dict[str, Any]:
  """The configuration as JSON values, without the run directory, which may move."""
  values = dataclasses.asdict(config)
  del values['out']
  values['data_dir'] = None if config.data_dir is None else str(config.data_dir)
  return values


def difference(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
  """Lines ``key: old -> new`` for every value that a resumed run may not change."""
  flat_old, flat_new = dict(_flatten(old)), dict(_flatten(new))
  return [
    f'{key}: {flat_old.get(key)!r} -> {flat_new.get(key)!r}'
    for key in sorted(flat_old | flat_new)
    if key not in FREE and flat_old.get(key) != flat_new.get(key)
  ]


def default_out(config: TrainConfig) -> pathlib.Path:
  """runs/MODEL[-ATTENTION][-POOL]-DATA-seedN.

  Nothing is in it that is not a letter, a digit, '.', '_' or '-'.
  """
  slots = (config.model, config.attention, config.pool, config.data, f'seed{config.seed}')
  name = '-'.join(filter(None, slots))
  return pathlib.Path('runs') / re.sub(r'[^A-Za-z0-9._-]+', '_', name)


def check(config: TrainConfig) -> None:
  """Refuses what cannot work, before anything is loaded or compiled.

  Raises:
    ConfigError: naming the flag, its value and what it must be.
  """
  optimizer, augment = config.optimizer, config.augment
  rules = [
    ('--batch-size', config.batch_size, config.batch_size >= 1, 'at least 1'),
    ('--epochs', config.epochs, config.epochs > 0, 'above 0'),
    ('--steps', config.steps, config.steps is None or config.steps >= 1, 'at least 1'),
    ('--seed', config.seed, 0 <= config.seed < 2**32, 'in [0, 2^32)'),
    ('--accumulate', config.accumulate, config.accumulate >= 1, 'at least 1'),
    ('--label-smoothing', config.label_smoothing, 0 <= config.label_smoothing < 1, 'in [0, 1)'),
    ('--ema-decay', config.ema_decay, 0 < (config.ema_decay or 0.5) < 1, 'in (0, 1) or None'),
    ('--max-skips', config.max_skips, config.max_skips >= 1, 'at least 1'),
    ('--log-every', config.log_every, config.log_every >= 1, 'at least 1'),
    ('--keep', config.keep, config.keep >= 1, 'at least 1'),
    ('--fsdp', config.fsdp, config.fsdp >= 1, 'at least 1'),
    ('--optimizer.warmup', optimizer.warmup, 0 <= optimizer.warmup < 1, 'in [0, 1)'),
    (
      '--optimizer.learning-rate',
      optimizer.learning_rate,
      0 < optimizer.learning_rate < float('inf'),
      'above 0',
    ),
    ('--optimizer.weight-decay', optimizer.weight_decay, optimizer.weight_decay >= 0, 'at least 0'),
    ('--augment.crop-padding', augment.crop_padding, augment.crop_padding >= 0, 'at least 0'),
    ('--augment.erasing', augment.erasing, 0 <= augment.erasing <= 1, 'in [0, 1]'),
    ('--augment.mixup', augment.mixup, augment.mixup >= 0, 'at least 0'),
    ('--augment.cutmix', augment.cutmix, augment.cutmix >= 0, 'at least 0'),
  ]
  for name in ('steps_per_call', 'evaluate_every', 'checkpoint_every'):
    value = getattr(config, name)
    rules.append((f'--{name.replace("_", "-")}', value, value is None or value >= 1, 'at least 1'))
  for flag, value, good, must in rules:
    if not good:
      raise ConfigError(f'{flag} {value} must be {must}')
  if config.batch_size % config.accumulate:
    raise ConfigError(
      f'--accumulate {config.accumulate} must divide --batch-size {config.batch_size}'
    )
  kind, _, rest = config.data.partition(':')
  if not (config.data == 'digits' or (kind in ('tfds', 'folder', 'npz') and rest)):
    raise ConfigError(f'--data {config.data!r} must be digits, tfds:NAME, folder:PATH or npz:PATH')


def _cli(arguments: list[str], base: TrainConfig, program: str, description: str | None):
  return tyro.cli(
    TrainConfig,
    args=arguments,
    default=base,
    prog=program,
    description=description,
    config=(tyro.conf.FlagConversionOff,),
  )


def _flags(values: dict[str, Any]):
  for key, value in _flatten(values):
    yield f'--{key.replace("_", "-")}'
    yield str(value)


def _flatten(values: dict[str, Any], prefix: str = ''):
  for key, value in values.items():
    if isinstance(value, dict):
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
