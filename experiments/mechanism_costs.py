"""What does each mechanism cost at 14 x 14 x 256?

  python -m experiments.mechanism_costs                      prints a JSON line for each name
  python -m experiments.mechanism_costs --out results.jsonl  appends them too

Each mechanism stands with its default settings on features [8, 14, 14, 256], float32. Parameters
are counted, multiply-accumulates are counted from the trace for one image, and a step is the
forward and backward pass, compiled, with gradients of parameters and features. All steps take turns
in one process, beside a 3x3 convolution of 256 channels; ``ratio`` is the median over that of the
convolution. Cost: some 5 minutes on two CPU cores. The table in MECHANISMS.md has what was
measured.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from experiments.errors import run_main


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Counts and times every mechanism."""

  rounds: int = 20
  """Steps of each that are timed, after two to warm up."""
  batch_size: int = 8
  """Images in a step."""
  size: int = 14
  """Height and width of the features."""
  channels: int = 256
  """Channels of the features."""
  only: tuple[str, ...] = ()
  """Names to measure; none is all of them."""
  out: pathlib.Path | None = None
  """JSON-lines file to append to; None only prints."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.mechanism_costs')
  import jax

  import jattn
  from experiments import environment

  shape = (chosen.batch_size, chosen.size, chosen.size, chosen.channels)
  modules = {name: jattn.create_attention(name) for name in chosen.only or jattn.list_attentions()}
  modules['conv3x3'] = make_convolution(chosen.channels)
  steps, facts = {}, {}
  for name, module in modules.items():
    steps[name], facts[name] = make_step(module, shape)
  times: dict[str, list[float]] = {name: [] for name in steps}
  for index in range(chosen.rounds + 2):
    for name, step in steps.items():
      begun = time.perf_counter()
      jax.block_until_ready(step())
      if index >= 2:
        times[name].append(time.perf_counter() - begun)
  medians = {name: statistics.median(values) for name, values in times.items()}
  env = environment.describe()
  lines = [
    {
      'id': f'mechanism_costs-{name}',
      'name': name,
      **facts[name],
      'milliseconds': round(1e3 * medians[name], 3),
      'ratio': round(medians[name] / medians['conv3x3'], 3),
      'features': shape,
      'rounds': chosen.rounds,
      'device': env['device'],
      'processor': env['processor'],
      'cores': env['cores'],
      'versions': {key: env['versions'][key] for key in ('jattn', 'jax', 'jaxlib', 'flax')},
      'git': env['git'],
      'date': time.strftime('%Y-%m-%d'),
    }
    for name in modules
  ]
  for line in lines:
    print(json.dumps(line))
  if chosen.out is not None:
    with open(chosen.out, 'a') as file:
      file.writelines(json.dumps(line) + '\n' for line in lines)
  return 0


def make_convolution(channels: int) -> Any:
  """What the mechanisms are measured beside."""
  import flax.linen as nn

  from jattn import Attended

  class Convolution(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
      del train
      return Attended(nn.Conv(channels, (3, 3), use_bias=False)(x))

  return Convolution()


def make_step(module: Any, shape: tuple[int, ...]) -> tuple[Callable[[], Any], dict[str, int]]:
  """A compiled forward and backward pass of no argument, and what the mechanism holds and costs."""
  import jax
  import jax.numpy as jnp

  from jattn.cost import multiply_accumulates

  x = jax.random.normal(jax.random.key(0), shape)
  variables = jax.jit(lambda: module.init(jax.random.key(1), x, train=False))()
  constants = {key: value for key, value in variables.items() if key != 'params'}
  params = variables.get('params', {})

  def loss(params, x):
    given = {'params': params, **constants}
    attended, _ = module.apply(given, x, train=True, mutable=['batch_stats'])
    return jnp.sum(jnp.square(attended.features))

  step = jax.jit(jax.grad(loss, argnums=(0, 1)))
  one = jax.ShapeDtypeStruct((1, *shape[1:]), x.dtype)
  facts = {
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'multiply_accumulates': multiply_accumulates(
      lambda x: module.apply(variables, x, train=False).features, one
    ),
  }
  return lambda: step(params, x), facts


if __name__ == '__main__':
  run_main(main)
