"""Timing what takes turns: on a shared machine only a ratio of neighbours says anything."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Step = Callable[[], Any]
# PyTorch's threads spin for a while after their work; the next in turn shall not pay for that.
_REST = 0.02


def take_turns(
  steps: Mapping[str, Step], rounds: int, warm: int = 2, seconds: float = 180
) -> dict[str, list[float]]:
  """Seconds of each step in each round; a step returns when its work is done.

  After so many ``seconds`` no further round begins, as soon as there are three.
  """
  times: dict[str, list[float]] = {name: [] for name in steps}
  start = time.perf_counter()
  for index in range(rounds + warm):
    if index >= warm + 3 and time.perf_counter() - start > seconds:
      break
    for name, step in steps.items():
      time.sleep(_REST)
      begun = time.perf_counter()
      step()
      if index >= warm:
        times[name].append(time.perf_counter() - begun)
  return times


def summary(times: Mapping[str, Sequence[float]]) -> dict[str, Any]:
  """Medians and the fastest, in milliseconds, and of how many rounds."""
  return {
    'rounds': min(map(len, times.values())),
    'median_ms': {name: 1e3 * statistics.median(spent) for name, spent in times.items()},
    'fastest_ms': {name: 1e3 * min(spent) for name, spent in times.items()},
  }


def against(times: Mapping[str, Sequence[float]], ours: str) -> dict[str, Any]:
  """``summary`` and how many times as fast ``ours`` is as the best of the others.

  ``ratio`` is by the medians, ``ratio_of_fastest`` by the fastest steps.
  """
  found = summary(times)
  ratios = {
    key: min(ms for name, ms in found[kind].items() if name != ours) / found[kind][ours]
    for key, kind in (('ratio', 'median_ms'), ('ratio_of_fastest', 'fastest_ms'))
  }
  return ratios | found


def geometric_mean(values: Sequence[float]) -> float:
  return math.exp(statistics.fmean(math.log(value) for value in values))
