"""Writes experiments/README.md, the tables of what was measured, from the lines of the runs.

python -m experiments.speed.page
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.errors import run_main
from experiments.speed import gpu
from experiments.speed.__main__ import Row, gpu_rows, rows

HERE = pathlib.Path(__file__).parents[1]
RESULTS = HERE / 'results' / 'speed.jsonl'
HEAD = """# What was measured

Written by `python -m experiments.speed.page` from `results/speed.jsonl`, the lines of
`python -m experiments.speed --out experiments/results/speed.jsonl`; one row alone by `--only C1`.
What is compared takes turns in one process, each row in its own, and `ratio` is by the medians.
Above 1 is in jattn's favour, except in C6 (second start over first) and C7 (times of importing),
where smaller is better.
Of PyTorch's settings (eager and compiled, both layouts) the fastest counts. Freed memory is kept
for the next step (`experiments.memory`), PyTorch's too. "No" is an answer too. Where a row was run
more than once of one commit, the line is that of the median ratio, and all ratios stand beside it.

In bfloat16 the CPU decides: where it has no products of bfloat16 (AVX2), C2 was 11.8 and C3 2.1
and more in bfloat16; where it has them (AVX-512 BF16), PyTorch uses them, and jattn's convolutions,
which compute in float32 with a quarter of the products, do not.

## CPU
"""
GPU = """
## GPU

`python -m experiments.speed --suite gpu --data cifar10.npz --airbench airbench94_muon.py`, in some
minutes on one GPU; `python -m experiments.cifar_file tfds:cifar10 --out cifar10.npz` makes the file
and github.com/KellerJordan/cifar10-airbench has the other. The kernels for GPUs are tested in
interpret mode. On a TPU nothing has been measured.
"""
COST = """
## What a training step costs

`jattn.cost`: multiply-accumulates of the loss and all gradients, counted from the trace, and what
XLA plans for intermediate arrays. By the median time of the row above.

| row | network | batch | multiply-accumulates | a second | intermediate arrays |
|---|---|---|---|---|---|
"""
LINKS = """
## Many devices: a projection

Nothing was run on many devices. Bytes that a step reduces over all of them, read from the program
compiled for {devices}, and what a ring of {devices} takes for them by the links' data sheets
(`--only links`; sources in `experiments/speed/links.py`), were nothing else computed meanwhile.

| network | image side | parameters | reduced | {links} |
|---|---|---|---|{dashes}
"""


def main(arguments: Sequence[str]) -> int:
  del arguments
  (HERE / 'README.md').write_text(render(RESULTS))
  return 0


def render(results: pathlib.Path) -> str:
  """The page; of each row the newest commit's line, of several the one with the median ratio."""
  runs: dict[str, list[dict[str, Any]]] = {}
  for found in map(json.loads, results.read_text().splitlines()):
    earlier = runs.get(found['id'], [])
    same = bool(earlier) and earlier[-1].get('git') == found.get('git')
    runs[found['id']] = [*earlier, found] if same else [found]
  newest = {}
  for name, lines in runs.items():
    lines.sort(key=lambda found: found['ratio'])
    newest[name] = lines[len(lines) // 2] | {'runs': [found['ratio'] for found in lines]}
  cpu = {name: row for name, row in rows().items() if name != 'links'}
  parts = [HEAD, *_table(cpu, newest), GPU, *_table(gpu_rows(gpu.Suite()), newest)]
  costs = [line for found in newest.values() for line in _costs(found)]
  if costs:
    parts += [COST, *costs]
  if 'links' in newest:
    parts += _links(newest['links'])
  return ''.join(parts)


def _table(known: Mapping[str, Row], newest: Mapping[str, dict[str, Any]]) -> Iterator[str]:
  yield '\n| row | measured | ratio | wanted | reached | seen | load | date |\n'
  yield '|---|---|---|---|---|---|---|---|\n'
  for name, row in known.items():
    found = newest.get(name)
    if found is None:
      cells = [name, row.title, '', row.must, 'not measured', '', '', '']
    else:
      verdict = 'yes' if row.reached(found) else 'no'
      load = '{} to {}'.format(*found['load'])
      seen = _seen(found)
      ratio, ratios = (f'{found["ratio"]:.3g}', ', '.join(f'{r:.3g}' for r in found['runs']))
      ratio += f' (of {ratios})' if len(found['runs']) > 1 else ''
      cells = [name, row.title, ratio, row.must, verdict, seen, load]
      cells.append(found['date'])
    yield f'| {" | ".join(cells)} |\n'
  machines = sorted({_machine(found) for name, found in newest.items() if name in known})
  yield from ('\n', *(f'{machine}\n' for machine in machines)) if machines else ()


def _costs(found: dict[str, Any], network: str = 'seed_classifier') -> Iterator[str]:
  for name, part in found.get('networks', {}).items():
    more = {'id': found['id'], **part}
    yield from _costs(more, 'resnet20' if name == 'plain' else f'resnet20, {name}')
  if 'multiply_accumulates' not in found:
    return
  count, planned = found['multiply_accumulates'], found['temporary_bytes']
  ms = found['step_ms'] if 'step_ms' in found else found['median_ms']['jattn']
  cells = [found['id'], found.get('model', network), str(found['batch']), f'{count / 1e9:.3g} G']
  cells += [f'{count / ms / 1e6:.3g} G', '' if planned is None else f'{planned / 2**20:.0f} MiB']
  yield f'| {" | ".join(cells)} |\n'


def _links(found: dict[str, Any]) -> Iterator[str]:
  models = found['models']
  links = list(next(iter(models.values()))['ring_ms'])
  heads, dashes = ' | '.join(links), '---|' * len(links)
  yield LINKS.format(devices=found['devices'], links=heads, dashes=dashes)
  for name, model in models.items():
    cells = [name, str(model['size']), f'{model["parameter_bytes"] / 1e6:.3g} MB']
    cells.append(', '.join(f'{n / 1e6:.3g} MB' for n in model['bytes'].values()))
    cells += [f'{ms:.3g} ms' for ms in model['ring_ms'].values()]
    yield f'| {" | ".join(cells)} |\n'


def _machine(found: dict[str, Any]) -> str:
  versions = ', '.join(
    f'{name} {found["versions"][name]}'
    for name in ('jax', 'flax', 'torch')
    if found['versions'].get(name)
  )
  device = '' if found['device'] == 'cpu' else f'{found["device"]}, '
  return f'Measured on: {device}{found["processor"]}, {found["cores"]} cores, {versions}.'


def _ratio(shape: dict[str, Any]) -> float:
  if 'ratio' in shape:
    return shape['ratio']
  return shape['median_ms']['torch'] / shape['median_ms']['jattn']


def _seen(found: dict[str, Any]) -> str:
  """The figures behind the ratio, as short as they go."""
  if 'networks' in found:
    return '; '.join(f'{name}: {_seen(part)}' for name, part in found['networks'].items())
  if 'shapes' in found and 'batch' in found['shapes'][0] and 'dtype' in found['shapes'][0]:
    return '; '.join(f'{s["dtype"]}, batch {s["batch"]}: {s["ratio"]:.3g}' for s in found['shapes'])
  if 'shapes' in found and 'model' in found['shapes'][0]:
    return '; '.join(f'{s["model"]}, batch {s["batch"]}: {s["ratio"]:.3g}' for s in found['shapes'])
  if 'shapes' in found:
    return '; '.join(
      f'N {s["positions"]}, {s["heads"]}x{s["widths"][0]}/{s["widths"][1]}: {_ratio(s):.3g}'
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
  if 'sprints' in found:
    runs = {**found['sprints'], 'airbench94': found['airbench']}
    return '; '.join(
      f'{name}: {100 * run["accuracy"]:.2f}% in {run["seconds"]:.3g} s'
      for name, run in runs.items()
    )
  if 'matrix_tflops' in found:
    return f'{found["step_tflops"]:.3g} of {found["matrix_tflops"]:.3g} TFLOP/s, {found["model"]}'
  if 'dense_bytes' in found:
    last = max(found['chunked_bytes'], key=int)
    return f'{found["dense_bytes"] / 2**20:.0f} MiB, {found["chunked_bytes"][last] / 2**20:.0f} MiB'
  return ''


if __name__ == '__main__':
  run_main(main)
