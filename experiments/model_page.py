"""What are the models that have names, in one page? Writes MODELS.md from their cards.

  python -m experiments.model_page          writes MODELS.md
  python -m experiments.model_page --check  says whether it is up to date (exit code 1 if not)

Half a minute: every model is traced and none is compiled.
"""

import collections
import dataclasses
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import tyro

from experiments.errors import run_main

ROOT = pathlib.Path(__file__).parent.parent
PAGE = ROOT / 'MODELS.md'
PARITY = ROOT / 'experiments' / 'results' / 'timm_models.jsonl'
HEAD = """# Models

`jattn.create_model(name, num_classes=..., attention=..., pool=...)`. Made by
`python -m experiments.model_page` from the models' cards (`print(jattn.model_card(name))`, which
has peak memory and the shape of every map besides).

Parameters and multiply-accumulates are of one image at the size and for the classes that a name was
designed for. Maps are counted by kind. The last column is the largest difference from timm 1.0.31
on the same drawn weights in float32: logits, every map and the batch statistics, in evaluation and
in training, at the native size and at another, each relative to the largest number or to one
(`python -m experiments.compare_timm`, lines in `experiments/results/timm_models.jsonl`).

| name | size | classes | parameters | multiply-accumulates | maps | source | difference from timm |
|---|--:|--:|--:|--:|---|---|---|
"""


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Writes the page of models."""

  check: bool = False
  """Only say whether the page is up to date."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.model_page')
  new = page()
  if chosen.check:
    old = PAGE.read_text() if PAGE.exists() else ''
    print('up to date' if new == old else f'{PAGE.name} is not what the code says; write it again')
    return int(new != old)
  PAGE.write_text(new)
  print(f'wrote {PAGE.name}')
  return 0


def page() -> str:
  """The whole page."""
  import jattn

  cards = (jattn.model_card(name, memory=False) for name in jattn.list_models())
  return HEAD + ''.join(f'{row(card)}\n' for card in cards)


def row(card: Any) -> str:
  """The line of one ``ModelCard``."""
  kinds = collections.Counter(kind for _, kind, _ in card.maps)
  cells = [
    f'`{card.name}`',
    str(card.image_size),
    f'{card.num_classes:,}',
    f'{card.parameters:,}',
    f'{card.multiply_accumulates / 1e9:.3f} G',
    ', '.join(f'{count} {kind}' for kind, count in kinds.items()) or 'none',
    card.source,
    _difference(measured().get(card.name)),
  ]
  return '| ' + ' | '.join(cells) + ' |'


def measured() -> dict[str, dict[str, Any]]:
  """The newest line of each name that was compared with timm."""
  lines = PARITY.read_text().splitlines() if PARITY.exists() else []
  return {line['model']: line for line in map(json.loads, lines)}


def _difference(line: dict[str, Any] | None) -> str:
  if line is None:
    return ''
  return f'{line["largest"]:.1e}' + ('' if line['ok'] else ' (too large)')


if __name__ == '__main__':
  run_main(main)
