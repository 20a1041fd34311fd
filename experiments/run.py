"""One training run, from a configuration to a directory that tells all about it."""

import contextlib
import dataclasses
import os
import statistics
import time
import warnings
from typing import Any

import jax
import numpy as np

from experiments import config as configuration
from experiments import environment
from experiments.errors import STOPPED, ConfigError, Diverged, InputError, RunError
from experiments.events import SummaryWriter
from experiments.map_log import MapLog
from experiments.progress import Reporter
from experiments.rundir import RunDirectory
from experiments.settings import TrainConfig
from experiments.setup import DataFacts, Setup, check_devices, load_data, make_setup
from experiments.start import load_start
from jattn import training
from jattn.data import DataError, stream_fingerprint
from jattn.training.checkpoint import CheckpointError, Checkpoints, CheckpointWarning

EVAL_BATCH = 256


def run(config: TrainConfig) -> int:
  """Trains, or goes on training, or says that it is done; returns the exit code.

  Raises:
    ExperimentError: with its message and exit code.
  """
  follows = config.distributed and environment.join()
  directory = RunDirectory(config.out or configuration.default_out(config), follows=follows)
  with contextlib.ExitStack() as stack:
    if follows:  # the first process tells what there is to tell
      stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, 'w'))))
    enter_together(directory, stack) if config.distributed else stack.enter_context(directory)
    stored = directory.read('config.json')
    if stored is not None:
      refuse_changes(directory, stored, configuration.to_json(config), 'configuration')
      if result := directory.read('result.json'):
        print(f'{directory.path} is done: {summary(result)}')
        if config.explain and not (directory.path / 'explain' / 'report.html').exists():
          print(f'its report is missing: python -m experiments.explain {directory.path}')
        return 0
    check_devices(config)
    start = directory.read('start.json')
    if config.init_from is not None and start is None and not config.init_from.exists():
      raise ConfigError(f'--init-from {config.init_from} does not exist')
    began = time.perf_counter()
    dataset = load_data(config)
    check_splits(config, dataset)
    try:
      facts = DataFacts.of(dataset, normalization=config.normalization)
    except DataError as error:  # of an image that is decoded for the mean
      raise InputError(f'--data {config.data}: {error}') from None
    if (old := directory.read('data.json')) is not None:
      refuse_changes(directory, old, facts.__dict__, 'data')
    setup = make_setup(config, facts, shapes=start and start['shapes'])
    return Run(directory, setup, dataset, began).go()


def check_splits(config: TrainConfig, dataset: Any) -> None:
  """Refuses data that could be trained on and then not be measured.

  Raises:
    InputError: a split is empty.
  """
  for split in ('train', 'choose', 'test'):
    if not dataset.num_examples(split):
      raise InputError(
        f'--data {config.data}: split {split!r} is empty; give more images, which are divided into '
        'train, choose and test'
      )


def enter_together(directory: RunDirectory, stack: contextlib.ExitStack) -> None:
  """Enters the directory of a run of several processes, or fails in all of them.

  Raises:
    RunError: the first process could not, or the others do not see what it sees.
  """
  problem = None
  try:
    stack.enter_context(directory)
  except RunError as error:
    problem = error
  entered, *_ = training.tell_all(int(problem is None))
  if problem is not None:
    raise problem
  if not entered:
    raise RunError(f'the first process cannot use --out {directory.path}')
  if len(set(training.tell_all(directory.looks()))) > 1:
    raise RunError(f'--out {directory.path} must be on a file system that all processes share')


class Run:
  """A run in progress: what its steps, evaluations and checkpoints write where."""

  def __init__(self, directory: RunDirectory, setup: Setup, dataset: Any, began: float):
    self.directory, self.setup, self.dataset = directory, setup, dataset
    self.config, self.began = setup.config, began
    self.eval_step = setup.eval_step()
    self.map_log = MapLog(setup, dataset)
    self.choose: tuple[int, dict[str, float]] = (-1, {})
    self.seconds_before = 0.0
    self.meta = {
      'config': configuration.to_json(setup.config),
      'data': stream_fingerprint(
        dataset, seed=setup.config.seed, batch_size=setup.config.batch_size
      ),
      'steps': setup.steps,
    }

  def go(self) -> int:
    """Trains to the end or to a signal; returns the exit code."""
    path = self.directory.path
    try:
      with (
        training.Preemption() as preemption,
        Checkpoints(
          path / 'ckpt', keep=self.config.keep, best='choose_accuracy'
        ) as self.checkpoints,
      ):
        state = self.restore()
        # Only now: a checkpoint may refuse what another command left no trace of.
        self.directory.write('config.json', configuration.to_json(self.config))
        self.directory.write('data.json', self.setup.facts.__dict__)
        self.directory.write('env.json', environment.describe())
        start = int(state.step)
        self.directory.rewind(start)
        self.directory.status('running', start)
        with (
          Reporter(self.setup.steps, start=start) as self.reporter,
          SummaryWriter(
            str(path / 'tb'),
            purge_step=start + 1 if start else None,
            write_to_disk=not self.directory.follows,
          ) as self.events,
        ):
          self.announce(start)
          fitted = self.fit(state, preemption)
        self.checkpoints.wait()
      return self.leave(fitted, preemption)
    except CheckpointError as error:
      self.directory.status('failed', -1, str(error))
      raise RunError(str(error)) from None
    except DataError as error:  # of a dataset too large to be read before
      self.directory.status('failed', -1, str(error))
      raise InputError(f'--data {self.config.data}: {error}') from None

  def fit(self, state: training.TrainState, preemption: training.Preemption) -> training.Fitted:
    config, setup = self.config, self.setup
    return training.fit(
      state,
      setup.train_step(),
      self.dataset.batches(
        'train',
        batch_size=config.batch_size,
        seed=config.seed,
        start=int(state.step),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      ),
      steps=setup.steps,
      mesh=setup.mesh,
      steps_per_call=setup.steps_per_call,
      max_skips=config.max_skips,
      on_log=self.on_log,
      log_every=config.log_every,
      evaluate=self.evaluate_choose,
      evaluate_every=config.evaluate_every or setup.steps_per_epoch,
      save=self.save,
      save_every=config.checkpoint_every or setup.steps_per_epoch,
      should_stop=preemption.should_stop,
    )

  def restore(self) -> training.TrainState:
    """The newest checkpoint that verifies, or a fresh state."""
    with warnings.catch_warnings(record=True) as caught:
      warnings.simplefilter('always', CheckpointWarning)
      restored = self.checkpoints.restore(self.setup.abstract_state())
    for warning in caught:
      print(f'warning: {warning.message}', flush=True)
    if restored is None:
      return self.begin()
    refuse_changes(self.directory, restored.meta['config'], self.meta['config'], 'configuration')
    refuse_changes(self.directory, restored.meta['data'], self.meta['data'], 'data')
    self.seconds_before = restored.meta['seconds']
    return restored.state

  def begin(self) -> training.TrainState:
    """A fresh state, with the weights of --init-from if there is one."""
    if self.config.init_from is None:
      return self.setup.create_state()
    variables, told = load_start(self.setup)
    self.directory.write('start.json', told)
    self.setup = dataclasses.replace(self.setup, shapes=told['shapes'])
    head = '; the last layer starts anew' if told['new_head'] else ''
    print(f'starts from {self.config.init_from}{head}', flush=True)
    return self.setup.create_state(variables)

  def announce(self, start: int) -> None:
    setup, facts = self.setup, self.setup.facts
    shapes = setup.abstract_state().params
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    device = jax.devices()[0].device_kind
    self.reporter.say(
      f'{self.config.model}: {parameters:,} parameters; {facts.name}: {facts.train_examples:,} '
      f'training images of {facts.num_classes} classes; {setup.steps} steps on {setup.mesh.size} '
      f'{device} device(s); in {self.directory.path}'
    )
    if start:
      self.reporter.say(f'going on from step {start}')

  def on_log(self, step: int, metrics: dict[str, float]) -> None:
    self.record('train', step, metrics | {'learning_rate': float(self.setup.schedule(step))})
    self.reporter.train(step, metrics)

  def evaluate_choose(self, step: int, state: training.TrainState) -> None:
    metrics = self.evaluate('choose', state).result()
    self.choose = (step, metrics)
    self.record('choose', step, metrics)
    self.map_log.write(self.events, step, state.eval_variables)
    self.reporter.say(
      f'step {step}: choose accuracy {metrics["accuracy"]:.4f}, loss {metrics["loss"]:.4f}'
    )

  def evaluate(self, split: str, state: training.TrainState) -> training.Metrics:
    return evaluate_split(self.setup, self.dataset, split, state.eval_variables, self.eval_step)

  def save(self, step: int, state: training.TrainState) -> None:
    evaluated, metrics = self.choose
    known = {'choose_accuracy': metrics['accuracy']} if evaluated == step else None
    seconds = self.seconds_before + time.perf_counter() - self.began
    self.checkpoints.save(step, state, meta=self.meta | {'seconds': seconds}, metrics=known)
    self.directory.status('running', step)

  def record(self, split: str, step: int, metrics: dict[str, float]) -> None:
    self.directory.append({'step': step, 'split': split, **metrics})
    for name, value in metrics.items():
      self.events.add_scalar(f'{split}/{name}', value, step)

  def leave(self, fitted: training.Fitted, preemption: training.Preemption) -> int:
    """Writes how it ended, and the results if it is done."""
    step = int(fitted.state.step)
    if fitted.reason == 'stopped':
      reason = f'{preemption.requested}; run the same command again to go on'
      self.directory.status('stopped', step, reason)
      print(f'stopped at step {step} by {reason}')
      return STOPPED
    if fitted.reason == 'diverged':
      reason = (
        f'{self.config.max_skips} updates in a row were not finite by step {step}; the checkpoints '
        f'before it are intact'
      )
      self.directory.status('diverged', step, reason)
      raise Diverged(f'{reason}\nlower --optimizer.learning-rate or set --optimizer.clip-norm')
    result = self.result(fitted.state)
    draw(self.directory, self.setup, self.dataset, fitted.state.eval_variables)
    self.directory.write('result.json', result)
    self.directory.status('done', step)
    self.map_log.report(self.directory, step, fitted.state.eval_variables)
    print(f'done: {summary(result)}; pictures in {self.directory.path}')
    return 0

  def result(self, state: training.TrainState) -> dict[str, Any]:
    test, choose = self.evaluate('test', state), self.evaluate('choose', state)
    names = self.setup.facts.class_names
    tested, chosen = test.result(), choose.result()
    lines = (line for line in self.directory.metrics() if line['split'] == 'train')
    rates = [line['images_per_second'] for line in lines if 'images_per_second' in line]
    return {
      'test_accuracy': tested['accuracy'],
      'choose_accuracy': chosen['accuracy'],
      'test_nll': tested['nll'],
      'test_ece': tested['ece'],
      'test_brier': tested['brier'],
      'test_top5_accuracy': tested['top5_accuracy'],
      'test_images': tested['count'],
      'test_class_accuracy': dict(zip(names, test.class_accuracy().tolist(), strict=True)),
      'test_confusion': np.asarray(test.confusion, int).tolist(),
      'parameters': sum(leaf.size for leaf in jax.tree.leaves(state.params)),
      'steps': int(state.step),
      'skipped_steps': int(state.skipped),
      'seconds': self.seconds_before + time.perf_counter() - self.began,
      'images_per_second': statistics.median(rates) if rates else None,
      'device': jax.devices()[0].device_kind,
      'devices': self.setup.mesh.size,
      'model': self.config.model,
      'attention': self.config.attention,
      'pool': self.config.pool,
      'data': self.setup.facts.name,
      'seed': self.config.seed,
    }


def evaluate_split(
  setup: Setup, dataset: Any, split: str, variables: Any, eval_step: Any
) -> training.Metrics:
  """Metrics over every image of a split, each once."""
  size = -(-EVAL_BATCH // setup.mesh.size) * setup.mesh.size
  return training.evaluate(
    eval_step,
    variables,
    dataset.eval_batches(
      split,
      batch_size=size,
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    ),
    num_classes=setup.facts.num_classes,
    mesh=setup.mesh,
  )


def draw(directory: RunDirectory, setup: Setup, dataset: Any, variables: Any) -> None:
  """Writes ``curves.png``, and ``attention.png`` of 16 test images if the model has maps."""
  variables = training.whole(variables)
  if directory.follows:
    return
  from experiments import pictures  # matplotlib: the first step must not wait for it

  pictures.draw_curves(directory.path / 'curves.png', directory.metrics())
  batch = next(iter(dataset.eval_batches('test', batch_size=16)))
  rows = np.flatnonzero(batch.mask)
  images, labels = batch.images[rows], batch.labels[rows]
  prediction = jax.device_get(
    jax.jit(lambda v, x: setup.model.apply(v, setup.prepare(x), train=False))(variables, images)
  )
  names = setup.facts.class_names
  pictures.draw_attention(
    directory.path / 'attention.png',
    images=images,
    maps=prediction.maps,
    truth=[names[label] for label in labels],
    predicted=[names[index] for index in prediction.logits.argmax(axis=-1)],
  )


def refuse_changes(directory: RunDirectory, old: dict, new: dict, what: str) -> None:
  """Refuses to go on with another configuration or other data.

  Raises:
    RunError: with every difference.
  """
  lines = configuration.difference(_as_json(old), _as_json(new))
  if lines:
    raise RunError(
      f'{directory.path} holds a run with another {what}; choose another --out, or undo:\n  '
      + '\n  '.join(lines)
    )


def summary(result: dict[str, Any]) -> str:
  return (
    f'test accuracy {result["test_accuracy"]:.4f} of {result["test_images"]} images, '
    f'{result["steps"]} steps in {result["seconds"]:.0f} s'
  )


def _as_json(values: dict) -> dict:
  return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}
