"""What does ``fit`` cost over a bare loop around the compiled step?

  python -m experiments.loop_overhead                      prints one JSON line
  python -m experiments.loop_overhead --out results.jsonl  appends it too

Trains ``seed_classifier`` on the embedded digits, with metrics read and logged in ``fit`` and
nothing read in the bare loop. The two take turns in one process, on the same compiled step, data
and state; ``ratio`` is the median time of a round of ``fit`` over that of the bare loop. Cost: some
3 minutes on two CPU cores. At most 1.02 is what is wanted; the README has what was measured.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import tyro

from experiments.config import PRESETS
from experiments.errors import run_main


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Times ``fit`` against the bare step."""

  rounds: int = 20
  """Rounds of each, after one to warm up."""
  steps: int = 20
  """Steps in a round."""
  batch_size: int = 32
  """Images in a step."""
  out: pathlib.Path | None = None
  """JSON-lines file to append to; None only prints."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.loop_overhead')
  from experiments import environment

  env = environment.describe()
  line = measure(rounds=chosen.rounds, steps=chosen.steps, batch_size=chosen.batch_size)
  line |= {name: env[name] for name in ('device', 'processor', 'cores', 'versions', 'git')}
  line['date'] = time.strftime('%Y-%m-%d')
  print(json.dumps(line))
  if chosen.out is not None:
    with open(chosen.out, 'a') as file:
      file.write(json.dumps(line) + '\n')
  return 0


def measure(*, rounds: int = 20, steps: int = 20, batch_size: int = 32) -> dict[str, Any]:
  """Rounds of each in turns; ``ratio`` is the median of ``fit`` over that of the bare loop."""
  import jax

  from experiments.setup import DataFacts, load_data, make_setup
  from jattn import training

  config = dataclasses.replace(PRESETS['digits'], batch_size=batch_size, epochs=1000)
  dataset = load_data(config)
  setup = make_setup(config, DataFacts.of(dataset))
  step, state = setup.train_step(), setup.create_state()
  batches = dataset.batches('train', batch_size=config.batch_size, seed=0)

  def bare(state):
    for _ in range(steps):
      state, _ = step(state, training.place_batch(next(batches), setup.mesh))
    return state

  def fitted(state):
    return training.fit(
      state,
      step,
      batches,
      steps=int(state.step) + steps,
      mesh=setup.mesh,
      on_log=lambda *_: None,
      log_every=5,
    ).state

  times: dict[str, list[float]] = {'bare': [], 'fit': []}
  for index in range(rounds + 1):
    for name, run in (('bare', bare), ('fit', fitted)):
      begun = time.perf_counter()
      state = jax.block_until_ready(run(state))
      if index:
        times[name].append(time.perf_counter() - begun)
  medians = {name: statistics.median(values) / steps for name, values in times.items()}
  return {
    'id': 'loop-overhead',
    'ratio': medians['fit'] / medians['bare'],
    'fit_ms': 1e3 * medians['fit'],
    'bare_ms': 1e3 * medians['bare'],
    'rounds': rounds,
    'steps': steps,
    'batch_size': batch_size,
  }


if __name__ == '__main__':
  run_main(main)
