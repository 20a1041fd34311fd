"""Writes experiments/README.md, the tables of what was measured, from the lines of the runs.

python -m experiments.speed.page
"""

import json
import pathlib
from collections.abc import Sequence
from typing import Any

from experiments.errors import run_main
from experiments.speed.__main__ import rows

HERE = pathlib.Path(__file__).parents[1]
RESULTS = HERE / 'results' / 'speed.jsonl'
HEAD = """# What was measured

Written by `python -m experiments.speed.page` from `results/speed.jsonl`, the lines of
`python -m experiments.speed --out experiments/results/speed.jsonl`; one row alone by `--only C1`.
What is compared takes turns in one process, and `ratio` is by the medians. Above 1 is in jattn's
favour, except in C6 (second start over first) and C7 (times of importing), where smaller is better.
Of PyTorch's settings (eager and compiled, both layouts) the fastest counts. "No" is an answer too.
"""
GPU = """
## GPU and TPU

Nothing has been measured on a GPU or a TPU yet. The kernels for GPUs are tested in interpret mode.
"""


def main(arguments: Sequence[str]) -> int:
  del arguments
  (HERE / 'README.md').write_text(render(RESULTS))
  return 0


def render(results: pathlib.Path) -> str:
  """The page; of each row the newest line."""
  newest = {found['id']: found for found in map(json.loads, results.read_text().splitlines())}
  parts = [HEAD, '\n| row | measured | ratio | wanted | reached | seen | load | date |', '\n']
  parts.append('|---|---|---|---|---|---|---|---|\n')
  for name, row in rows().items():
    found = newest.get(name)
    if found is None:
      cells = [name, row.title, '', row.must, 'not measured', '', '', '']
    else:
      verdict = 'yes' if row.reached(found) else 'no'
      load = '{} to {}'.format(*found['load'])
      seen = _seen(found)
      cells = [name, row.title, f'{found["ratio"]:.3g}', row.must, verdict, seen, load]
      cells.append(found['date'])
    parts.append(f'| {" | ".join(cells)} |\n')
  machines = sorted({_machine(found) for found in newest.values()})
  return ''.join([*parts, '\n', *(f'{machine}\n' for machine in machines), GPU])


def _machine(found: dict[str, Any]) -> str:
  versions = ', '.join(
    f'{name} {found["versions"][name]}'
    for name in ('jax', 'flax', 'torch')
    if found['versions'].get(name)
  )
  return f'Measured on: {found["processor"]}, {found["cores"]} cores, {versions}.'


def _seen(found: dict[str, Any]) -> str:
  """The figures behind the ratio, as short as they go."""
  if 'networks' in found:
    return '; '.join(f'{name}: {_seen(part)}' for name, part in found['networks'].items())
  if 'shapes' in found and 'batch' in found['shapes'][0] and 'dtype' in found['shapes'][0]:
    return '; '.join(f'{s["dtype"]}, batch {s["batch"]}: {s["ratio"]:.3g}' for s in found['shapes'])
  if 'shapes' in found:
    return '; '.join(
      f'N {s["positions"]}, {s["heads"]}x{s["widths"][0]}/{s["widths"][1]}: '
      f'{s["median_ms"]["torch"] / s["median_ms"]["jattn"]:.3g}'
      for s in found['shapes']
    )
  if 'median_ms' in found and 'more_ms' not in found:
    ours = found['median_ms']['jattn']
    best = min((ms, name) for name, ms in found['median_ms'].items() if name != 'jattn')
    return f'{ours:.3g} ms, {best[1]} {best[0]:.3g} ms'
  if 'more_ms' in found:
    return f'{found["more_ms"]:+.0f} ms; with a network touched {found["touched_ms"]:+.0f} ms'
  if 'warm_s' in found:
    return f'{found["cold_s"]:.3g} s, then {found["warm_s"]:.3g} s'
  if 'ratios' in found:
    return ', '.join(f'{value:.3g} x {name}' for name, value in found['ratios'].items())
  if 'fit_ms' in found:
    return f'{found["bare_ms"]:.3g} ms bare, {found["fit_ms"]:.3g} ms'
  if 'dense_bytes' in found:
    last = max(found['chunked_bytes'], key=int)
    return f'{found["dense_bytes"] / 2**20:.0f} MiB, {found["chunked_bytes"][last] / 2**20:.0f} MiB'
  return ''


if __name__ == '__main__':
  run_main(main)
