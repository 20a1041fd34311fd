"""What do explanations cost against the loops that people write by hand?

  python -m experiments.explanation_speed                      prints four JSON lines
  python -m experiments.explanation_speed --out results.jsonl  appends them too

``occlusion``: one image of 32x32, 28x28 windows of 5x5 pixels, for the tutorial's classifier, a
narrow copy of it and ``scene_classifier``. Against it two loops over the windows that call a jitted
forward pass: one as a person writes it (the window cut out of the array, the logit made a number),
and one with all it can save (the window is cut inside the jitted function, and nothing is read
before the end). At least 10 times as fast as a loop is what is wanted; that is what calls cost
beside the network, so the network decides.

``removal``: deletion and insertion of 256 images in 50 steps in one compiled call, as seconds, and
images through the network in a second; for a narrow copy, since the full one takes minutes on a
CPU.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import tyro

from experiments.errors import run_main


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Times explanations."""

  only: Literal['occlusion', 'removal'] | None = None
  """One of the two; None is both."""
  rounds: int = 5
  """Of each, in turns, after one to warm up."""
  out: pathlib.Path | None = None
  """JSON-lines file to append to; None only prints."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.explanation_speed')
  from experiments import environment

  env = environment.describe()
  about = {key: env[key] for key in ('device', 'processor', 'cores', 'versions', 'git')}
  narrow = {'widths': (8, 16, 32), 'hidden': 64}
  networks = (('seed_classifier', {}), ('seed_classifier', narrow), ('scene_classifier', {}))
  made = [('occlusion', functools.partial(occlusion, *network)) for network in networks]
  for name, measure in (*made, ('removal', removal)):
    if chosen.only not in (None, name):
      continue
    line = {'id': name, **measure(rounds=chosen.rounds), **about, 'date': time.strftime('%Y-%m-%d')}
    print(json.dumps(line))
    if chosen.out is not None:
      with open(chosen.out, 'a') as file:
        file.write(json.dumps(line) + '\n')
  return 0


def occlusion(name: str, settings: dict[str, Any], *, rounds: int) -> dict[str, Any]:
  """28x28 windows: one compiled call against two loops, which all give the same numbers."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  import jattn
  from jattn.explain import explain

  window, count, target = 5, 28, 3
  model = jattn.create_model(name, num_classes=10, **settings)
  image = jax.random.uniform(jax.random.key(0), (1, 32, 32, 3))
  variables = jax.jit(lambda key: model.init(key, image, train=False))(jax.random.key(1))
  places = [(top, left) for top in range(count) for left in range(count)]

  @jax.jit
  def forward(variables, image):
    return model.apply(variables, image, train=False).logits[0, target]

  @jax.jit
  def covered(variables, image, top, left):
    hole = jnp.zeros((1, window, window, 3))
    image = jax.lax.dynamic_update_slice(image, hole, (0, top, left, 0))
    return model.apply(variables, image, train=False).logits[0, target]

  def plain_loop():
    whole = float(forward(variables, image))
    return [
      whole - float(forward(variables, image.at[:, y : y + window, x : x + window].set(0.0)))
      for y, x in places
    ]

  def lean_loop():
    drops = [covered(variables, image, y, x) for y, x in places]
    return np.asarray(forward(variables, image)) - np.asarray(drops)

  def one_call():
    return explain(
      'occlusion', model, variables, image, jnp.array([target]), window=window, stride=1
    ).block_until_ready()

  np.testing.assert_allclose(plain_loop(), lean_loop(), atol=1e-5)
  # The corner is under one window alone.
  np.testing.assert_allclose(one_call()[0, 0, 0], lean_loop()[0], atol=1e-5)
  seconds = _in_turns(
    {'plain_loop': plain_loop, 'lean_loop': lean_loop, 'one_call': one_call}, rounds
  )
  return {
    'model': name,
    'settings': settings,
    'ratio': seconds['plain_loop'] / seconds['one_call'],
    'ratio_to_lean_loop': seconds['lean_loop'] / seconds['one_call'],
    'windows': len(places),
    'rounds': rounds,
    **{f'{name}_ms': 1e3 * value for name, value in seconds.items()},
  }


def removal(rounds: int) -> dict[str, Any]:
  """256 images, 50 steps, both ways."""
  import jax

  from jattn.explain import deletion_and_insertion
  from jattn.models import seed_classifier

  images, steps = 256, 50
  model = seed_classifier(10, widths=(8, 16, 32), hidden=64)
  x = jax.random.uniform(jax.random.key(0), (images, 32, 32, 3))
  maps = jax.random.uniform(jax.random.key(1), (images, 32, 32))
  variables = jax.jit(lambda key: model.init(key, x, train=False))(jax.random.key(2))

  def both():
    return jax.block_until_ready(
      deletion_and_insertion(model, variables, x, maps, key=jax.random.key(3), steps=steps)
    )

  seconds = _in_turns({'both': both}, rounds)['both']
  looked_at = 2 * images * (steps + 1)
  return {
    'seconds': seconds,
    'images': images,
    'steps': steps,
    'images_per_second': looked_at / seconds,
    'rounds': rounds,
  }


def _in_turns(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
  """Median seconds of each, the first round left out."""
  times: dict[str, list[float]] = {name: [] for name in functions}
  for index in range(rounds + 1):
    for name, function in functions.items():
      begun = time.perf_counter()
      function()
      if index:
        times[name].append(time.perf_counter() - begun)
  return {name: statistics.median(values) for name, values in times.items()}


if __name__ == '__main__':
  run_main(main)
