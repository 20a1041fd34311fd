"""What are the mechanisms, in one page? Writes MECHANISMS.md from the code and the measured lines.

  python -m experiments.mechanism_page          writes MECHANISMS.md
  python -m experiments.mechanism_page --check  says whether it is up to date (exit code 1 if not)

Formulas and sources are the first sentence with a formula and the first citation of each docstring.
Kinds of maps come from the modules, costs from ``results/mechanism_costs.jsonl``, the newest line
of each name.
What follows the tables in the page is kept as it stands.
"""

import dataclasses
import inspect
import json
import pathlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from experiments.errors import run_main

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / 'MECHANISMS.md'
COSTS = ROOT / 'experiments' / 'results' / 'mechanism_costs.jsonl'
END = '<!-- written by hand from here -->'
AUTHORS = r"[A-Z][\w'’-]+(?: (?:&|and) [A-Z][\w-]+| et al\.)?,? (?:19|20)\d\d"
CITED = re.compile(rf'{AUTHORS}[^.;]*?,\s+arXiv\s+\d{{4}}\.\d{{5}}|{AUTHORS}')
SHAPE = (1, 14, 14, 256)


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Writes the page of mechanisms and poolings."""

  check: bool = False
  """Only say whether the page is up to date."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.mechanism_page')
  old = PAGE.read_text() if PAGE.exists() else ''
  new = page() + old[old.find(END) :] if END in old else page() + END + '\n'
  if chosen.check:
    print('up to date' if new == old else f'{PAGE.name} is not what the code says; write it again')
    return int(new != old)
  PAGE.write_text(new)
  print(f'wrote {PAGE.name}')
  return 0


def page() -> str:
  """The generated part of the page."""
  from jattn.attention import MECHANISMS
  from jattn.pooling import POOLINGS

  costs = measured()
  any_line = next(iter(costs.values()), {})
  where = (
    f'{any_line["processor"]}, {any_line["cores"]} cores, float32, jax '
    f'{any_line["versions"]["jax"]}, {any_line["date"]}'
    if any_line
    else 'not measured yet'
  )
  batch = any_line.get('features', [0])[0]
  head = [
    '# Mechanisms and poolings',
    '',
    'Made by `python -m experiments.mechanism_page` from the docstrings and from',
    '`experiments/results/mechanism_costs.jsonl`. Parameters and multiply-accumulates of one image',
    'are those of the default settings on 14x14 features of 256 channels; a step is a forward and',
    f'backward pass of {batch} such images relative to that of a 3x3 convolution of 256 channels,',
    f'median of {any_line.get("rounds", 0)} interleaved rounds ({where}).',
    '',
    '## Mechanisms: `create_attention(name, ...)`',
    '',
    '| name | formula | source | maps (kind) | parameters | multiply-accumulates | step |',
    '|---|---|---|---|--:|--:|--:|',
  ]
  rows = [_row(name, cls, costs.get(name)) for name, cls in sorted(MECHANISMS.items())]
  pools = [
    '',
    '## Poolings: `create_pooling(name, ...)`',
    '',
    '| name | formula | source | maps (kind) | parameters |',
    '|---|---|---|---|--:|',
    *(_row(name, cls, None, pooling=True) for name, cls in sorted(POOLINGS.items())),
  ]
  return '\n'.join([*head, *rows, *pools, '', ''])


def measured() -> dict[str, dict[str, Any]]:
  """The newest line of each name."""
  lines = COSTS.read_text().splitlines() if COSTS.exists() else []
  return {line['name']: line for line in map(json.loads, lines)}


def facts(module: Any) -> tuple[int, int, dict[str, str]]:
  """Parameters, multiply-accumulates of one image, and the kind of each map."""
  import jax
  import jax.numpy as jnp

  from jattn.cost import multiply_accumulates

  x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), x)
  returned = jax.eval_shape(lambda v, x: module.apply(v, x, train=False), variables, x)

  def output(v, x):
    found = module.apply(v, x, train=False)
    return found.features if hasattr(found, 'features') else found.vector

  parameters = sum(leaf.size for leaf in jax.tree.leaves(variables.get('params', {})))
  kinds = {name: attention_map.kind for name, attention_map in returned.maps.items()}
  return parameters, multiply_accumulates(output, variables, x), kinds


def _row(name: str, cls: Any, cost: dict[str, Any] | None, *, pooling: bool = False) -> str:
  parameters, products, kinds = facts(cls())
  maps = ', '.join(f'`{map_name}` ({kind})' for map_name, kind in kinds.items()) or 'none'
  cells = [f'`{name}`', *_described(cls), maps, f'{parameters:,}']
  if not pooling:
    cells += [f'{products:,}', 'not measured' if cost is None else f'{cost["ratio"]:.2f}']
  return '| ' + ' | '.join(cells) + ' |'


def _described(cls: Any) -> Iterator[str]:
  """What a table says of a class: the formula and the source, as its docstring has them."""
  text = ' '.join(inspect.getdoc(cls).split())
  sentences = re.split(r'(?<=[^\s.])(?<!al)\.(?= |$)', text)
  sentence = next((s for s in sentences if '``' in s), sentences[0]).strip()
  yield sentence.replace('``', '`').replace('|', '\\|')
  cited = CITED.search(text)
  yield cited.group().replace('|', '\\|') if cited else ''


if __name__ == '__main__':
  run_main(main)
