"""A command line or a file becomes a configuration that can work; imports neither jax nor jattn.

A configuration is JSON and comes back from JSON through the same flags that a person types, so a
file is checked as strictly as a command line.
"""

import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import tyro

from experiments.errors import ConfigError
from experiments.presets import PRESETS
from experiments.settings import AugmentConfig, OptimizerConfig, TrainConfig

# What may differ between a run and its resumption without changing a single weight.
FREE = (
  'out distributed data_dir in_memory workers log_every evaluate_every checkpoint_every keep '
  'explain'
).split()


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
  for key in ('data_dir', 'init_from'):
    values[key] = None if values[key] is None else str(values[key])
  values['optimizer']['drops'] = list(config.optimizer.drops)
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
  for flag, value, good, must in (
    *_rules_of_numbers(config),
    *_rules_of_run(config),
    *_rules_of_optimizer(config.optimizer),
    *_rules_of_augmentation(config.augment),
  ):
    if not good:
      raise ConfigError(f'{flag} {value} must be {must}')
  _check_together(config)


Rule = tuple[str, Any, bool, str]  # flag, value, whether it is good, what it must be


def _rules_of_numbers(config: TrainConfig) -> list[Rule]:
  """What holds for every number: JSON and the counters of a device hold no others."""
  rules = []
  for name, value in _flatten(dataclasses.asdict(config)):
    flag = f'--{name.replace("_", "-")}'
    if type(value) is float:
      rules.append((flag, value, math.isfinite(value), 'a finite number'))
    elif type(value) is int:
      rules.append((flag, value, abs(value) < 2**32, 'below 2^32'))
  return rules


def _rules_of_run(config: TrainConfig) -> list[Rule]:
  ema_decay, freeze = config.ema_decay, config.freeze
  rules = [
    ('--epochs', config.epochs, config.epochs > 0, 'above 0'),
    ('--seed', config.seed, 0 <= config.seed < 2**32, 'in [0, 2^32)'),
    ('--label-smoothing', config.label_smoothing, 0 <= config.label_smoothing < 1, 'in [0, 1)'),
    ('--ema-decay', ema_decay, ema_decay is None or 0 < ema_decay < 1, 'in (0, 1) or None'),
    ('--mimetic', config.mimetic, (config.mimetic or 0) >= 0, 'at least 0 or None'),
    ('--drop-path', config.drop_path, 0 <= (config.drop_path or 0) < 1, 'in [0, 1) or None'),
    ('--crop-ratio', config.crop_ratio, 0 < config.crop_ratio <= 1, 'in (0, 1]'),
    ('--workers', config.workers, config.workers >= 0, 'at least 0'),
    ('--explain', config.explain, config.explain >= 0, 'at least 0'),
    (
      '--freeze',
      freeze,
      freeze is None or bool(re.fullmatch(r'stem|backbone|stage_\d+(/block_\d+)?', freeze)),
      'stem, stage_S, stage_S/block_I or backbone',
    ),
  ]
  for name in (
    'batch_size steps accumulate max_skips log_every keep fsdp steps_per_call evaluate_every '
    'checkpoint_every image_size store_size'
  ).split():
    value = getattr(config, name)
    rules.append((f'--{name.replace("_", "-")}', value, value is None or value >= 1, 'at least 1'))
  return rules


def _rules_of_optimizer(optimizer: OptimizerConfig) -> list[Rule]:
  rate, drops, clip = optimizer.learning_rate, optimizer.drops, optimizer.clip_norm
  rising = drops and sorted({0.0, 1.0, *drops}) == [0.0, *drops, 1.0]
  rules = [
    ('learning-rate', rate, 0 < rate < float('inf'), 'above 0'),
    ('warmup', optimizer.warmup, 0 <= optimizer.warmup < 1, 'in [0, 1)'),
    ('drops', drops, bool(rising), 'rising in (0, 1)'),
    ('weight-decay', optimizer.weight_decay, optimizer.weight_decay >= 0, 'at least 0'),
    ('clip-norm', clip, clip is None or clip > 0, 'above 0 or None'),
    ('momentum', optimizer.momentum, 0 <= optimizer.momentum < 1, 'in [0, 1)'),
    ('layer-decay', optimizer.layer_decay, 0 < optimizer.layer_decay <= 1, 'in (0, 1]'),
  ]
  return [(f'--optimizer.{flag}', *rest) for flag, *rest in rules]


def _rules_of_augmentation(augment: AugmentConfig) -> list[Rule]:
  area = augment.crop_area
  rules = [
    ('crop-area', area, area is None or 0 < area <= 1, 'in (0, 1] or None'),
    ('crop-aspect', augment.crop_aspect, augment.crop_aspect >= 1, 'at least 1'),
    ('rand-magnitude', augment.rand_magnitude, 0 <= augment.rand_magnitude <= 10, 'in 0..10'),
  ]
  for name in 'crop_padding rand_layers rand_std mixup cutmix'.split():
    value = getattr(augment, name)
    rules.append((name.replace('_', '-'), value, value >= 0, 'at least 0'))
  for name in ('erasing', 'mix_probability', 'mix_switch'):
    value = getattr(augment, name)
    rules.append((name.replace('_', '-'), value, 0 <= value <= 1, 'in [0, 1]'))
  return [(f'--augment.{flag}', *rest) for flag, *rest in rules]


def _check_together(config: TrainConfig) -> None:
  """Refuses flags that do not go together."""
  augment = config.augment
  if config.batch_size % config.accumulate:
    raise ConfigError(
      f'--accumulate {config.accumulate} must divide --batch-size {config.batch_size}'
    )
  kind, _, rest = config.data.partition(':')
  if not (config.data == 'digits' or (kind in ('tfds', 'folder', 'npz', 'scenes') and rest)):
    raise ConfigError(
      f'--data {config.data!r} must be digits, tfds:NAME, folder:PATH, npz:PATH or scenes:KIND'
    )
  if augment.crop_area is not None and augment.crop_padding:
    raise ConfigError(
      f'--augment.crop-area {augment.crop_area} and --augment.crop-padding {augment.crop_padding} '
      'do not go together: set one to None or 0'
    )
  if augment.auto != 'none' and augment.rand_layers:
    raise ConfigError(
      f'--augment.auto {augment.auto} and --augment.rand-layers {augment.rand_layers} do not go '
      'together: set one to none or 0'
    )
  if config.store_size is not None and (augment.crop_area is None or config.image_size is None):
    raise ConfigError('--store-size needs --augment.crop-area and --image-size')


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
    yield from map(str, value if isinstance(value, list) else [value])


def _flatten(values: dict[str, Any], prefix: str = ''):
  for key, value in values.items():
    if isinstance(value, dict):
      yield from _flatten(value, f'{prefix}{key}.')
    else:
      yield f'{prefix}{key}', value
