"""C6, C7: how long it takes until something happens, in new processes."""

import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.errors import RunError

ROOT = pathlib.Path(__file__).parents[2]


def first_step(rounds: int, *flags: str) -> dict[str, Any]:
  """C6: from the command to its first training step, with nothing compiled before and again.

  ``flags`` are given to ``experiments.train digits`` besides.

  ``cold_s`` is with an empty directory of compiled programs, ``warm_s`` the same command after it.
  ``ratio`` is warm over cold.
  """
  cold, warm = [], []
  with tempfile.TemporaryDirectory() as folder:
    for index in range(max(1, min(3, rounds))):
      for number, times in enumerate((cold, warm)):
        out = f'{folder}/run{index}_{number}'
        cache = {'XDG_CACHE_HOME': f'{folder}/{index}'}
        times.append(_seconds_to_step(out, cache, flags))
  medians = statistics.median(cold), statistics.median(warm)
  return {
    'id': 'C6',
    'rounds': len(cold),
    'ratio': medians[1] / medians[0],
    'cold_s': medians[0],
    'warm_s': medians[1],
  }


def importing(rounds: int) -> dict[str, Any]:
  """C7: ``import jattn`` beside what it is built on; ``more_ms`` is the difference of medians.

  Networks are imported when they are touched: ``touched_ms`` is the difference with that.
  """
  commands = {
    'jattn': 'import jattn',
    'jax, flax.linen': 'import jax, flax.linen',
    'jattn, touched': 'import jattn; jattn.create_model',
  }
  times: dict[str, list[float]] = {name: [] for name in commands}
  for index in range(rounds + 1):
    for name, command in commands.items():
      spent = _seconds(('-c', command), {})
      if index:
        times[name].append(spent)
  ms = {name: 1e3 * statistics.median(spent) for name, spent in times.items()}
  ours, theirs, touched = ms.values()
  return {
    'id': 'C7',
    'ratio': ours / theirs,
    'more_ms': ours - theirs,
    'touched_ms': touched - theirs,
    'median_ms': ms,
  }


def _seconds_to_step(out: str, more: Mapping[str, str], flags: Sequence[str]) -> float:
  """Of a run of three steps; it is left to end before the next."""
  command = ('-u', '-m', 'experiments.train', 'digits', '--steps', '3', '--log-every', '1', *flags)
  begun, spent = time.perf_counter(), None
  with subprocess.Popen(
    [sys.executable, *command, '--out', out],
    env=_environment(more),
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    text=True,
  ) as process:
    for line in process.stdout:
      if spent is None and line.startswith('step 1/'):
        spent = time.perf_counter() - begun
  if process.returncode or spent is None:
    raise RunError(f'{" ".join(command)} ended with {process.returncode}')
  return spent


def _environment(more: Mapping[str, str]) -> dict[str, str]:
  return {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'} | dict(more)


def _seconds(arguments: Sequence[str], more: Mapping[str, str]) -> float:
  begun = time.perf_counter()
  subprocess.run(
    [sys.executable, *arguments],
    env=_environment(more),
    cwd=ROOT,
    check=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  return time.perf_counter() - begun
