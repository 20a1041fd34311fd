"""Does attention look at the object?

A digit lies among clutter on a black canvas, and which pixels are its own is known. Seven networks
that differ in what weighs positions are trained to name the digit; every map that a network can
give of itself, and every method that explains it from outside, is held against the digit.

  python -m experiments.does_it_look --out runs/look                              everything
  python -m experiments.does_it_look --out runs/look --sizes 60 --arms sim_pool   a part of it
  python -m experiments.does_it_look --out runs/look --page experiments/results   the pages

What is done already is not done again, and several parts can run at once into one folder. The whole
is 126 networks of about 20,000 parameters: some two hours on two CPU cores.

- Arms: average pooling, which weighs nothing, and six that learn to weigh: weighted average,
  SimPool, class attention and CLIP's attention pooling; self-attention and CBAM before an average.
- Controls: maps of noise, of a centred Gaussian, of edges and of one value, which know nothing of
  a network; every arm untrained; every arm trained, a quarter as long, on labels in a random order.
- The class asked about is the true one. 64 test scenes a network, none of them used in training,
  and no digit of theirs either.
- Pointing game and energy lift against the digit's 28x28 box, AUROC against its ink and against its
  box; faithfulness against what covering each of 5x5 cells does to the logit; class sensitivity
  against the map of the likeliest other class, for trained networks.

The answer (three seeds, two cores of an AMD EPYC, 2026-11-25), whole in
experiments/results/does_it_look.md: yes for the learned poolings, with reservations. The own map of
the weighted average points at the digit in all scenes (60 and 100), with an energy lift of 4.5 of
at most 4.6, and 12.5 of at most 12.8; SimPool's in 91% and 88%; CBAM's gate is even (lift 1.0) and
does not. Self-attention was run at 60 alone, and does as well there. No own map depends on the
class, nor does rollout. Edges, which know nothing of a network, have an AUROC of 0.97 against the
ink, so that score alone proves nothing. What the logit needs is told best by integrated gradients
(rank correlation 0.5 to 0.8); the weighted average's own map tells little of it (0.26 at 60, none
at 100). Maps of untrained networks differ from seed to seed around chance; trained on random labels
the poolings look away from the digit.
"""

import dataclasses
import json
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import tyro

from experiments.errors import run_main
from experiments.settings import TrainConfig

# The mechanism before the pooling, and the pooling.
ARMS = {
  'average': ('none', 'average'),
  'weighted_average': ('none', 'weighted_average'),
  'sim_pool': ('none', 'sim_pool'),
  'class_attention': ('none', 'class_attention'),
  'attention_pool_2d': ('none', 'attention_pool_2d'),
  'self_attention': ('self_attention', 'average'),
  'cbam': ('cbam', 'average'),
}
STATES = ('untrained', 'trained', 'shuffled')
CELLS = 5  # on a side, of faithfulness
IMAGES = 64
STEPS = 800

Arm = Literal[
  'average',
  'weighted_average',
  'sim_pool',
  'class_attention',
  'attention_pool_2d',
  'self_attention',
  'cbam',
]


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Trains small networks on scenes and asks where they look."""

  out: pathlib.Path
  """Folder for the result lines and, of seed 0, the maps."""
  sizes: tuple[Literal[60, 100], ...] = (60, 100)
  """Sides of the canvases."""
  arms: tuple[Arm, ...] = tuple(ARMS)
  """What weighs positions."""
  seeds: tuple[int, ...] = (0, 1, 2)
  """Of initialisation and order."""
  steps: int = STEPS
  """Training steps of 32 scenes."""
  images: int = IMAGES
  """Test scenes whose maps are scored."""
  page: pathlib.Path | None = None
  """Only write the pages and the collected lines into this folder."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.does_it_look')
  if chosen.page is not None:
    from experiments.does_it_look_page import write_pages

    write_pages(chosen.out, chosen.page)
    return 0
  chosen.out.mkdir(parents=True, exist_ok=True)
  for size in chosen.sizes:
    dataset = None
    for arm in ('controls', *chosen.arms):
      if arm == 'controls' and (chosen.out / f'{size}-controls.jsonl').exists():
        continue
      if dataset is None:
        dataset = scenes(size, chosen.steps)
      look_at(chosen, size, arm, dataset)
  return 0


def scenes(size: int, steps: int) -> Any:
  """The scenes, as many for training as the steps need."""
  from experiments.setup import load_data

  return load_data(configuration(size, 'average', steps))


def configuration(size: int, arm: str, steps: int) -> TrainConfig:
  """The preset of that size, with the arm in its slots."""
  from experiments.presets import PRESETS

  preset = PRESETS[f'cluttered{size}']
  attention, pool = ARMS.get(arm, ARMS['average'])
  train = max(steps * preset.batch_size, 1000)
  data = f'{preset.data}&train={train}&choose=0&test=1000'
  return dataclasses.replace(preset, attention=attention, pool=pool, steps=steps, data=data)


def look_at(chosen: Arguments, size: int, arm: str, dataset: Any) -> None:
  """Appends a line for every network of an arm that has none yet."""
  path = chosen.out / f'{size}-{arm}.jsonl'
  done = {json.loads(line)['id'] for line in path.read_text().splitlines()} if path.exists() else ()
  for line in lines(chosen, size, arm, dataset, done):
    with open(path, 'a') as file:
      file.write(json.dumps(line) + '\n')
    print(summary(line), flush=True)


def lines(
  chosen: Arguments, size: int, arm: str, dataset: Any, done: Any
) -> Iterator[dict[str, Any]]:
  """One result for each network, or one for the controls, which need none."""
  from experiments.looking import Eye, facts

  config = configuration(size, arm, chosen.steps)
  eye = Eye(config, dataset, images=chosen.images, cells=CELLS)
  if arm == 'controls':
    begun = time.perf_counter()
    yield facts() | {
      'id': f'cluttered{size}-controls',
      'size': size,
      'arm': arm,
      'images': chosen.images,
      'chance': eye.chance(),
      'methods': eye.scores_of_controls(),
      'seconds': time.perf_counter() - begun,
    }
    return
  for seed in chosen.seeds:
    ids = {state: f'cluttered{size}-{arm}-{state}-seed{seed}' for state in STATES}
    missing = {state: name for state, name in ids.items() if name not in done}
    new = eye.start(seed) if missing else None
    for state, name in missing.items():
      begun = time.perf_counter()
      steps = {'untrained': 0, 'trained': chosen.steps, 'shuffled': chosen.steps // 4}[state]
      variables = eye.train(new, seed=seed, steps=steps, shuffled=state == 'shuffled')
      accuracy = eye.accuracy(variables)
      methods, failed, maps = eye.look(variables, other_class=state == 'trained')
      if seed == 0:
        eye.keep(chosen.out / f'{size}-{arm}-{state}.npz', variables, maps)
      yield facts() | {
        'id': name,
        'size': size,
        'arm': arm,
        'state': state,
        'seed': seed,
        'steps': steps,
        'test_accuracy': accuracy,
        'test_scenes': dataset.num_examples('test'),
        'images': chosen.images,
        'methods': methods,
        'cannot': failed,
        'seconds': time.perf_counter() - begun,
      }


def summary(line: dict[str, Any]) -> str:
  """A result in a line for people."""
  best = line['methods'].get('attention', next(iter(line['methods'].values())))
  told = ' '.join(f'{name} {value:.3f}' for name, value in best.items() if value is not None)
  accuracy = f' accuracy {line["test_accuracy"]:.3f};' if 'test_accuracy' in line else ''
  return f'{line["id"]}:{accuracy} {told}; {line["seconds"]:.0f} s'


if __name__ == '__main__':
  run_main(main)
