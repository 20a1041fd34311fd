"""A finished or running run, reloaded by its directory alone."""

import dataclasses
import pathlib
import sys
import warnings
from typing import Any

from experiments import config as configuration
from experiments.errors import InputError, RunError
from experiments.rundir import RunDirectory
from experiments.setup import DataFacts, Setup, load_data, make_setup
from jattn.training.checkpoint import CheckpointError, Checkpoints, CheckpointWarning


@dataclasses.dataclass(frozen=True)
class Reloaded:
  """The parts of a run and the variables it is evaluated with."""

  setup: Setup
  variables: Any
  step: int


def reload_run(path: pathlib.Path) -> Reloaded:
  """Reads a run directory: its model, what it knows of its data, and its newest good checkpoint.

  Nothing in the directory is written, and the data is not needed.

  Raises:
    RunError: it is no run directory, or no checkpoint in it verifies.
    ConfigError: its configuration is not of this version.
  """
  directory = RunDirectory(path)
  facts = directory.read('data.json')
  if facts is None:
    raise RunError(f'{path} is not a run directory: it has no data.json')
  config = configuration.load(directory.path / 'config.json')
  start = directory.read('start.json')
  setup = make_setup(config, DataFacts.from_json(facts), shapes=start and start['shapes'])
  try:
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always', CheckpointWarning)
      restored = Checkpoints(directory.path / 'ckpt').restore(setup.abstract_state())
  except CheckpointError as error:
    raise RunError(str(error)) from None
  for warning in caught:
    print(f'warning: {warning.message}', file=sys.stderr)
  if restored is None:
    raise RunError(f'{path} has no checkpoint yet')
  return Reloaded(setup, restored.state.eval_variables, restored.step)


def load_data_of(
  run: Reloaded,
  path: pathlib.Path,
  *,
  data: str | None = None,
  data_dir: pathlib.Path | None = None,
) -> Any:
  """The data that a run was trained on.

  Args:
    run: the run.
    path: its directory, for the message.
    data: its name now, where its folder or file has moved; None is the run's.
    data_dir: where prepared TFDS data lies now; None is where the run found it.

  Raises:
    InputError: it is missing, damaged, or other data.
  """
  config = run.setup.config
  if data is not None:
    config = dataclasses.replace(config, data=data)
  if data_dir is not None:
    config = dataclasses.replace(config, data_dir=data_dir)
  try:
    dataset = load_data(config)
  except InputError as error:
    raise InputError(f'{error}; --data and --data-dir say where it lies now') from None
  if dataset.fingerprint != run.setup.facts.fingerprint:
    raise InputError(f'--data {config.data} is not the data that {path} was trained on')
  return dataset
