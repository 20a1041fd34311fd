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

ROOT = pathlib.Path(__file__).parents[2]


def first_step(rounds: int) -> dict[str, Any]:
  """C6: a training command of three steps, with nothing compiled before and again.

  The whole command is timed, its start and end included: ``cold_s`` with an empty directory of
  compiled programs, ``warm_s`` the same command after it. ``ratio`` is warm over cold.
  """
  cold, warm = [], []
  with tempfile.TemporaryDirectory() as folder:
    for index in range(max(1, min(3, rounds))):
      cache = {'XDG_CACHE_HOME': f'{folder}/{index}'}
      for number, times in enumerate((cold, warm)):
        out = f'{folder}/run{index}_{number}'
        command = ('-m', 'experiments.train', 'digits', '--steps', '3', '--out', out)
        times.append(_seconds(command, cache))
  medians = statistics.median(cold), statistics.median(warm)
  ratio = medians[1] / medians[0]
  return {'id': 'C6', 'ratio': ratio, 'cold_s': medians[0], 'warm_s': medians[1]}


def importing(rounds: int) -> dict[str, Any]:
  """C7: ``import jattn`` beside what it is built on; ``more_ms`` is the difference of medians."""
  commands = {'jattn': 'import jattn', 'jax, flax.linen': 'import jax, flax.linen'}
  times: dict[str, list[float]] = {name: [] for name in commands}
  for index in range(rounds + 1):
    for name, command in commands.items():
      spent = _seconds(('-c', command), {})
      if index:
        times[name].append(spent)
  ms = {name: 1e3 * statistics.median(spent) for name, spent in times.items()}
  ours, theirs = ms.values()
  return {'id': 'C7', 'ratio': ours / theirs, 'more_ms': ours - theirs, 'median_ms': ms}


def _seconds(arguments: Sequence[str], more: Mapping[str, str]) -> float:
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_COMPILATION_CACHE_DIR'}
  begun = time.perf_counter()
  subprocess.run(
    [sys.executable, *arguments],
    env=environment | more,
    cwd=ROOT,
    check=True,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  return time.perf_counter() - begun
