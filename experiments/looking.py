"""Networks of ``does_it_look``: trained, looked at, and scored against what is known."""

import dataclasses
import functools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import environment
from experiments.explanations import take
from experiments.run import evaluate_split
from experiments.settings import TrainConfig
from experiments.setup import DataFacts, make_setup
from jattn import explain, training
from jattn.data import order
from jattn.explain import CONTROLS, Score
from jattn.types import Batch

# What the network says of itself, by gradients through that, through the features, and through the
# image; and by covering. Fewer nodes and samples than usual, since the scores are means.
METHODS: dict[str, dict[str, Any]] = {
  'attention': {},
  'rollout': {},
  'gradient_attention': {},
  'attention_grad_cam': {},
  'chefer': {},
  'legrad': {},
  'grad_cam': {},
  'grad_cam_plus_plus': {},
  'hires_cam': {},
  'layer_cam': {},
  'saliency': {},
  'input_x_gradient': {},
  'integrated_gradients': {'nodes': 16},
  'occlusion': {},
}
_KEY = 7


class Eye:
  """The same test scenes under every network of an arm.

  Attributes:
    setup: the parts of a run, of seed 0.
    sample: the scenes that are explained.
  """

  def __init__(self, config: TrainConfig, dataset: Any, *, images: int, cells: int):
    self.dataset, self.cells = dataset, (cells, cells)
    self.setup = make_setup(config, DataFacts.of(dataset))
    self.eval_step = self.setup.eval_step()
    self.sample = take(dataset, 'test', images)
    self.images = self.setup.prepare(jnp.asarray(self.sample.images))
    self.black = self.setup.prepare(jnp.zeros((1, 1, 1, 3), jnp.uint8))
    self.targets = jnp.asarray(self.sample.labels)

  @functools.cached_property
  def train_step(self) -> Any:
    """Compiled once for all seeds."""
    return self.setup.train_step()

  def start(self, seed: int) -> Any:
    """The variables of a new network."""
    config = dataclasses.replace(self.setup.config, seed=seed)
    state = dataclasses.replace(self.setup, config=config).create_state()
    return jax.device_get(state.eval_variables)

  def train(self, variables: Any, *, seed: int, steps: int, shuffled: bool) -> Any:
    """The variables after so many steps of the setup's recipe.

    The rates are those of the setup, which may be longer. ``shuffled`` gives each scene the label
    of another, the same one whenever it comes.
    """
    config = dataclasses.replace(self.setup.config, seed=seed)
    state = dataclasses.replace(self.setup, config=config).create_state(variables)
    if steps:
      batches = self.dataset.batches('train', batch_size=config.batch_size, seed=seed)
      if shuffled:
        batches = _shuffled(batches, self.dataset, seed=seed, batch_size=config.batch_size)
      mesh = self.setup.mesh
      state = training.fit(state, self.train_step, batches, steps=steps, mesh=mesh).state
    return state.eval_variables

  def accuracy(self, variables: Any) -> float:
    """Share of all test scenes that are named rightly."""
    metrics = evaluate_split(self.setup, self.dataset, 'test', variables, self.eval_step)
    return metrics.result()['accuracy']

  def look(
    self, variables: Any, *, other_class: bool
  ) -> tuple[dict, dict[str, str], dict[str, np.ndarray]]:
    """Scores of each method, why others cannot serve this network, and the maps.

    With ``other_class`` the scores hold ``class_sensitivity`` too: how alike the maps of the true
    class and of the likeliest other one are, 1 where a method does not ask for the class.
    """
    drops = explain.covering_drops(
      self.setup.model,
      variables,
      self.images,
      self.targets,
      cells=self.cells,
      baseline=self.black,
    )
    scores, failed, maps = {}, {}, {}
    for method, settings in METHODS.items():
      try:
        maps[method] = self._map(method, variables, settings)
      except ValueError as error:
        failed[method] = str(error)
        continue
      scores[method] = self._scores(maps[method], drops)
      if other_class:
        others = self._map(method, variables, settings, self._likeliest_other(variables))
        value, valid = explain.spearman(maps[method], others)
        scores[method]['class_sensitivity'] = _mean(Score(value, jnp.ones_like(value), valid))
    return scores, failed, maps

  def scores_of_controls(self) -> dict[str, dict[str, float | None]]:
    """Of maps that know nothing of a network."""
    variables = self.setup.create_state().eval_variables
    return {name: self._scores(self._map(name, variables, {}), None) for name in CONTROLS}

  def chance(self) -> dict[str, float]:
    """What a map of one value gets, the mean over the scenes."""
    boxes = float(np.mean(self.sample.filled_boxes))
    return {
      'pointing_game': boxes,
      'energy_lift': 1.0,
      'auroc': 0.5,
      'auroc_of_box': 0.5,
      'faithfulness': 0.0,
      'box_area': boxes,
      'ink_area': float(np.mean(self.sample.truth.masks)),
    }

  def keep(self, path: pathlib.Path, variables: Any, maps: dict[str, np.ndarray]) -> None:
    """Writes the maps of the first scenes, and what the network said to them."""
    count = 24
    np.savez_compressed(
      path,
      images=self.sample.images[:count],
      labels=self.sample.labels[:count],
      probabilities=np.asarray(jax.nn.softmax(self._logits(variables)[:count])),
      masks=self.sample.truth.masks[:count],
      boxes=self.sample.truth.boxes[:count],
      **{f'map_{name}': np.asarray(values[:count], np.float16) for name, values in maps.items()},
    )

  def _logits(self, variables: Any) -> jax.Array:
    return _applied(self.setup.model, variables, self.images)

  def _likeliest_other(self, variables: Any) -> jax.Array:
    logits = self._logits(variables)
    own = jax.nn.one_hot(self.targets, logits.shape[1], dtype=bool)
    return jnp.argmax(jnp.where(own, -jnp.inf, logits), axis=1).astype(jnp.int32)

  def _map(
    self,
    method: str,
    variables: Any,
    settings: dict[str, Any],
    targets: jax.Array | None = None,
  ) -> jax.Array:
    if method == 'integrated_gradients':
      # At once: gradients of convolutions are slow inside a loop on CPU.
      at_once = settings['nodes'] * len(self.images)
      settings = settings | {'baseline': self.black, 'images_at_once': at_once}
    elif method == 'occlusion':
      # Other windows than the cells of faithfulness, which would hold it against itself.
      side = self.images.shape[1] // 4
      settings = {'window': side, 'stride': -(-side // 2), 'baseline': self.black}
    return explain.explain(
      method,
      self.setup.model,
      variables,
      self.images,
      self.targets if targets is None else targets,
      key=jax.random.key(_KEY),
      **settings,
    )

  def _scores(self, maps: jax.Array, drops: jax.Array | None) -> dict[str, float | None]:
    boxes, ink = jnp.asarray(self.sample.filled_boxes), jnp.asarray(self.sample.truth.masks)
    found = {
      'pointing_game': explain.pointing_game(maps, boxes),
      'energy_lift': explain.energy_lift(maps, boxes),
      'auroc': explain.auroc(maps, ink),
      'auroc_of_box': explain.auroc(maps, boxes),
    }
    if drops is not None:
      found['faithfulness'] = explain.faithfulness(maps, drops)
    said = {name: _mean(score) for name, score in found.items()}
    return said | {'degenerate': round(float(explain.degenerate(maps).mean()), 4)}


@functools.partial(jax.jit, static_argnums=0)
def _applied(model: Any, variables: Any, images: jax.Array) -> jax.Array:
  return model.apply(variables, images, train=False).logits


def _mean(score: Score) -> float | None:
  """Over the scenes that can be scored; None where there is none."""
  if not score.valid.any():
    return None
  return round(float(jnp.mean(score.value, where=score.valid)), 4)


def _shuffled(
  batches: Iterator[Batch], dataset: Any, *, seed: int, batch_size: int
) -> Iterator[Batch]:
  count = dataset.num_examples('train')
  _, labels = dataset.arrays('train')
  labels = np.random.default_rng(seed).permutation(labels)
  for step, batch in enumerate(batches):
    rows = order(seed, step, batch_size=batch_size, num_examples=count)
    yield batch.replace(labels=labels[rows])


def facts() -> dict[str, Any]:
  """What every line says of where it was made."""
  env = environment.describe()
  told = {key: env[key] for key in ('device', 'processor', 'cores', 'versions', 'git')}
  return told | {'date': time.strftime('%Y-%m-%d')}
