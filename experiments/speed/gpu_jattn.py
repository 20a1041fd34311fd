"""What jattn runs in the rows for a GPU, in its own process (``experiments.speed.worker``)."""

import concurrent.futures
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments import environment
from experiments.errors import RunError
from experiments.speed.training_step import TrainingStep, draw
from jattn import ops

# Programs compiled at a time: XLA leaves the interpreter free while it compiles.
_COMPILED_AT_ONCE = 8


class Runner:
  """See ``worker.Framework``."""

  def __init__(self):
    self._last: Any = None

  def describe(self) -> dict[str, Any]:
    env = environment.describe()
    names = ('backend', 'device', 'processor', 'cores', 'versions', 'git')
    return {name: env[name] for name in names}

  def prepare(self, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    def make(settings: Mapping[str, Any]) -> Any:
      settings = dict(settings)
      try:
        step = {'train': training, 'attention': attention}[settings.pop('part')](**settings)
        jax.block_until_ready(step())
      except Exception as error:  # the others may run
        return error
      return lambda: self._keep(step())

    with concurrent.futures.ThreadPoolExecutor(_COMPILED_AT_ONCE) as pool:
      return dict(zip(steps, pool.map(make, steps.values()), strict=True))

  def _keep(self, value: Any) -> None:
    self._last = value

  def wait(self) -> None:
    jax.block_until_ready(self._last)

  def measure(self, part: str, **settings: Any) -> dict[str, Any]:
    parts = {'parameters': parameters, 'utilisation': utilisation, 'idle': idle}
    return parts[part](**settings)


def training(model: str, batch: int, size: int) -> Callable[[], Any]:
  """A step in bfloat16."""
  return TrainingStep(model, *draw(batch, size), half=True)


def parameters(model: str) -> dict[str, Any]:
  return {'parameters': TrainingStep(model, *draw(1)).parameters}


def attention(
  implementation: str | None, batch: int, positions: int, heads: int, widths: list[int]
) -> Callable[[], Any]:
  """Output, summed against fixed numbers, and its gradients by q, k and v, in bfloat16."""
  width, value_width = widths
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, weights = (
    jax.random.normal(key, (batch, positions, heads, w), jnp.bfloat16)
    for key, w in zip(keys, (width, width, value_width, value_width), strict=True)
  )
  if implementation is not None:
    from jattn.ops.attention_choice import refusal

    why = refusal(implementation, q, k, v)
    if why is not None:
      raise ValueError(why)

  def loss(q, k, v, weights):
    out = ops.attend(q, k, v, implementation=implementation)
    return (out * weights).sum(dtype=jnp.float32)

  step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
  return lambda: step(q, k, v, weights)


def utilisation(
  model: str,
  where: str,
  batch: int,
  size: int,
  rounds: int,
  side: int = 8192,
) -> dict[str, Any]:
  """Operations of a training step that the model needs, over what matrix products reach here.

  Two operations for each multiply-accumulate that ``jattn.cost`` counts in the step, forward and
  backward; the rate is that of a ``side`` x ``side`` product in bfloat16.
  """
  matrix = jax.random.normal(jax.random.key(0), (side, side), jnp.bfloat16)
  product = jax.jit(jnp.dot)
  step = TrainingStep(model, *draw(batch, size), half=True, attach=('self_attention', where))
  seconds = {
    'product': _median_seconds(lambda: product(matrix, matrix), rounds),
    'step': _median_seconds(step, rounds),
  }
  cost = step.cost()
  rate = 2 * side**3 / seconds['product']
  achieved = 2 * cost['multiply_accumulates'] / seconds['step']
  return {
    'model': f'{model} + self_attention after {where}',
    'batch': batch,
    'size': size,
    'ratio': achieved / rate,
    'matrix_tflops': rate / 1e12,
    'step_tflops': achieved / 1e12,
    'step_ms': 1e3 * seconds['step'],
    'images_per_second': batch / seconds['step'],
    **cost,
  }


def _median_seconds(step: Callable[[], Any], rounds: int, repeats: int = 5) -> float:
  """Of a step, by groups of steps that the device works off in one go."""
  times = []
  jax.block_until_ready(step())
  for _ in range(rounds):
    begun = time.perf_counter()
    for _ in range(repeats):
      last = step()
    jax.block_until_ready(last)
    times.append((time.perf_counter() - begun) / repeats)
  return statistics.median(times)


def idle(data: str, batch: int, steps: int, device: str = '/device:GPU') -> dict[str, Any]:
  """Share of the time of ``fit``, in steady state, in which nothing ran on the device.

  Args:
    data: name of a data set.
    batch: images in a step.
    steps: under the profiler, after as many without.
    device: how the profiler's planes of devices begin.
  """
  import dataclasses

  from experiments.config import PRESETS
  from experiments.setup import DataFacts, load_data, make_setup
  from jattn import training

  config = dataclasses.replace(
    PRESETS['cifar10'], data=data, batch_size=batch, precision='bfloat16', epochs=10_000
  )
  dataset = load_data(config)
  setup = make_setup(config, DataFacts.of(dataset))
  step, state = setup.train_step(), setup.create_state()
  batches = dataset.batches('train', batch_size=batch, seed=0)

  def fitted(state: Any) -> Any:
    return jax.block_until_ready(
      training.fit(
        state,
        step,
        batches,
        steps=int(state.step) + steps,
        mesh=setup.mesh,
        on_log=lambda *_: None,
        log_every=max(1, steps // 4),
        steps_per_call=setup.steps_per_call,
      ).state
    )

  state = fitted(state)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      fitted(state)
    (file,) = pathlib.Path(folder).rglob('*.xplane.pb')
    profile = jax.profiler.ProfileData.from_file(str(file))
    spans = [
      (event.start_ns, event.start_ns + event.duration_ns)
      for plane in profile.planes
      if plane.name.startswith(device)
      for line in plane.lines
      for event in line.events
    ]
  if not spans:
    raise RunError(f'the profile has nothing of {device}')
  return {'ratio': idle_share(spans), 'batch': batch, 'steps': steps, 'events': len(spans)}


def idle_share(spans: Iterable[tuple[float, float]]) -> float:
  """Of the time from the first start to the last end, the share in which no span runs.

  >>> idle_share([(0, 4), (2, 5), (9, 10)])
  0.4
  """
  ordered = sorted(spans)
  begun = reached = ordered[0][0]
  waited = 0.0
  for start, end in ordered:
    waited += max(0.0, start - reached)
    reached = max(reached, end)
  return waited / (reached - begun)
