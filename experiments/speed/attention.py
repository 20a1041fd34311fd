"""How fast is ``jattn.ops.attend``, and which implementation is the fastest where?

  python -m experiments.speed.attention                  against PyTorch, a JSON line a row
  python -m experiments.speed.attention --write-table    measures every implementation here and
                                                         writes jattn/ops/attention_table.py

A step is the output, summed against fixed numbers, and its gradients by q, k and v, compiled. What
is compared takes turns in one process; ``ratio`` is the time of the other over that of jattn, by
the medians and by the fastest steps (on a shared machine only the latter says much). Cost: some 5
minutes on two idle CPU cores, 10 for the table.

Measured on two cores of an AMD EPYC (Zen 3) that other work kept busy, PyTorch 2.13, jax 0.10.2:
see ``experiments/results``.
"""

import dataclasses
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import tyro

from experiments.errors import ConfigError, run_main
from experiments.speed.clock import against, geometric_mean, take_turns

SIZES = (64, 256, 1024, 4096)
# heads, width of queries and keys, width of values: one head of C/8 and C, and heads of 64
HEADS = ((1, 8, 64), (1, 32, 256), (4, 64, 64))
TABLE = pathlib.Path(__file__).parents[2] / 'jattn' / 'ops' / 'attention_table.py'
# Below so many pairs the table has 'dense' whatever is faster: it alone has forward mode.
LEAST = 256**2


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Times attention, forward and backward."""

  rounds: int = 15
  """Steps of each that are timed, after two to warm up."""
  sizes: tuple[int, ...] = SIZES
  """Numbers of positions."""
  write_table: bool = False
  """Measure the implementations instead and write the table that None chooses by."""
  out: pathlib.Path | None = None
  """JSON-lines file to append to; None only prints."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.speed.attention')
  if chosen.write_table:
    row = against_each_other(rounds=chosen.rounds)
    write_table(row)
    rows = [row]
  else:
    rows = [against_torch(chosen.rounds, sizes=chosen.sizes), memory()]
  from experiments import environment

  env = environment.describe()
  facts = {name: env[name] for name in ('device', 'processor', 'cores', 'versions', 'git')}
  for row in rows:
    line = json.dumps(row | facts | {'date': time.strftime('%Y-%m-%d')})
    print(line)
    if chosen.out is not None:
      with open(chosen.out, 'a') as file:
        file.write(line + '\n')
  return 0


def against_torch(rounds: int = 15, *, sizes: Sequence[int] = SIZES) -> dict[str, Any]:
  """Row C4: the automatic choice beside ``scaled_dot_product_attention``, float32, same numbers.

  Raises:
    ConfigError: PyTorch is not installed.
  """
  try:
    import torch
  except ImportError:
    raise ConfigError("this needs PyTorch: pip install 'jattn[torch]'") from None
  from jattn import ops

  shapes = []
  for heads, width, value_width in HEADS:
    for size in sizes:
      arrays = _draw(heads, width, value_width, size)
      twins = [torch.tensor(x).transpose(1, 2).contiguous() for x in arrays]
      for twin in twins[:3]:
        twin.requires_grad_()

      def torch_step(twins=twins):
        out = torch.nn.functional.scaled_dot_product_attention(*twins[:3])
        return torch.autograd.grad(out, twins[:3], twins[3])

      times = take_turns({'jattn': _step(arrays, None), 'torch': torch_step}, rounds)
      q, k, v, _ = arrays
      shapes.append(
        {
          'positions': size,
          'batch': q.shape[0],
          'heads': heads,
          'widths': [width, value_width],
          'chosen': ops.choose_implementation(q, k, v),
          'median_ms': {name: 1e3 * statistics.median(spent) for name, spent in times.items()},
          'fastest_ms': {name: 1e3 * min(spent) for name, spent in times.items()},
        }
      )
  return {
    'id': 'C4',
    'against': f'torch {torch.__version__} scaled_dot_product_attention, CPU',
    'ratio': geometric_mean([_ratio(s['median_ms'], 'torch', 'jattn') for s in shapes]),
    'ratio_of_fastest': geometric_mean([_ratio(s['fastest_ms'], 'torch', 'jattn') for s in shapes]),
    'rounds': rounds,
    'shapes': shapes,
  }


def by_blocks(rounds: int = 15, *, size: int = 1024) -> dict[str, Any]:
  """Time of the dense form over that of the chunked, forward and backward, float32.

  ``ratio`` is of the head shape that is worst.
  """
  shapes = []
  for heads, width, value_width in HEADS:
    arrays = _draw(heads, width, value_width, size)
    steps = {'jattn': _step(arrays, 'chunked'), 'dense': _step(arrays, 'dense')}
    found = against(take_turns(steps, rounds), 'jattn')
    shapes.append({'positions': size, 'heads': heads, 'widths': [width, value_width], **found})
  return {'id': 'chunked', 'ratio': min(s['ratio'] for s in shapes), 'shapes': shapes}


def memory(size: int = 16384, width: int = 32, value_width: int = 256) -> dict[str, Any]:
  """Bytes that a compiled step needs beside operands and results; nothing is run."""
  import jax
  import jax.numpy as jnp

  from jattn import ops

  def needed(implementation: str, size: int) -> int:
    q, v = (jax.ShapeDtypeStruct((1, size, 1, w), jnp.float32) for w in (width, value_width))

    def loss(*operands):
      return jnp.square(ops.attend(*operands, implementation=implementation)).sum()

    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))
    return step.lower(q, q, v).compile().memory_analysis().temp_size_in_bytes

  sizes = [size // 8, size // 4, size // 2, size]
  chunked, dense = {n: needed('chunked', n) for n in sizes}, needed('dense', size)
  return {
    'id': 'memory',
    'ratio': dense / chunked[size],
    'dense_bytes': dense,
    'chunked_bytes': chunked,
  }


def against_each_other(*, rounds: int = 9) -> dict[str, Any]:
  """Fastest steps of every implementation that runs here, by size and type, in ms."""
  import jax
  import jax.numpy as jnp

  from jattn.ops.attention_choice import Implementation, refusal

  found = []
  for dtype in ('float32', 'bfloat16'):
    for size in (64, 128, 256, 512, 1024, 2048):
      for heads, width, value_width in HEADS:
        arrays = [jnp.asarray(x, dtype) for x in _draw(heads, width, value_width, size)]
        steps = {
          name: _step(arrays, name)
          for name in Implementation.__args__
          if refusal(name, *arrays[:3]) is None
        }
        times = take_turns(steps, rounds)
        found.append(
          {
            'dtype': dtype,
            'positions': size,
            'heads': heads,
            'widths': [width, value_width],
            'fastest_ms': {name: 1e3 * min(spent) for name, spent in times.items()},
          }
        )
  return {
    'id': 'attention-implementations',
    'platform': jax.default_backend(),
    'rounds': rounds,
    'found': found,
  }


def write_table(row: dict[str, Any], path: pathlib.Path = TABLE) -> None:
  """Puts the fastest implementation by size into the table, for the platform of ``row`` alone."""
  from jattn.ops.attention_table import TABLE as table

  table = dict(table)
  for dtype, bits in (('float32', 32), ('bfloat16', 16)):
    steps, last = [(0, 'dense')], 'dense'
    entries = [entry for entry in row['found'] if entry['dtype'] == dtype]
    for size in sorted({entry['positions'] for entry in entries}):
      same = [entry['fastest_ms'] for entry in entries if entry['positions'] == size]
      names = set.intersection(*(set(times) for times in same))
      best = min(sorted(names), key=lambda n: geometric_mean([times[n] for times in same]))
      if size**2 >= LEAST and best != last:
        steps.append((size**2, best))
        last = best
    table[row['platform'], bits] = tuple(steps)
  head = path.read_text().partition('TABLE: ')[0]
  lines = [f'  {key!r}: {value!r},\n' for key, value in sorted(table.items())]
  kind = 'dict[tuple[str, int], tuple[tuple[int, str], ...]]'
  path.write_text(f'{head}TABLE: {kind} = {{\n{"".join(lines)}}}\n')


def _draw(heads: int, width: int, value_width: int, size: int) -> list[Any]:
  """q, k, v and the output's gradient, NumPy, about as many positions in all at every size."""
  import numpy as np

  rng = np.random.default_rng(0)
  batch = max(1, 4096 // (size * heads))
  return [
    rng.normal(size=(batch, size, heads, w)).astype(np.float32)
    for w in (width, width, value_width, value_width)
  ]


def _step(arrays: Sequence[Any], implementation: str | None) -> Callable[[], Any]:
  import jax
  import jax.numpy as jnp

  from jattn import ops

  @jax.jit
  def step(q, k, v, weights):
    def loss(q, k, v):
      return (ops.attend(q, k, v, implementation=implementation) * weights).sum()

    return jax.value_and_grad(loss, argnums=(0, 1, 2))(q, k, v)

  arrays = [jnp.asarray(x) for x in arrays]
  return lambda: jax.block_until_ready(step(*arrays))


def _ratio(times: dict[str, float], other: str, ours: str) -> float:
  return times[other] / times[ours]


if __name__ == '__main__':
  run_main(main)
