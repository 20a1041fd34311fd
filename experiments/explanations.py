"""A run's first images explained by several methods, and what each map is worth."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.errors import ConfigError
from experiments.setup import Setup
from jattn import explain
from jattn.data.scenes import SceneDataset, Truth
from jattn.explain import Score
from jattn.names import look_up
from jattn.types import in_order

# The model's own map, methods that look inside, methods that look from outside, and two controls
# that know nothing of the network. What a model cannot serve is left out, and said.
DEFAULTS = (
  'attention',
  'legrad',
  'chefer',
  'rollout',
  'grad_cam',
  'layer_cam',
  'hires_cam',
  'integrated_gradients',
  'occlusion',
  'centre',
  'random',
)
AGAINST_BOXES = ('pointing_game', 'energy', 'energy_lift', 'auroc')
STEPS = 10  # of deletion and insertion: enough to tell methods apart, a fifth of the full cost


@dataclasses.dataclass(frozen=True)
class Sample:
  """The first images of a split, in order.

  Attributes:
    images: [N, H, W, 3] uint8.
    labels: [N] int32.
    truth: where the objects are, if the data knows.
  """

  images: np.ndarray
  labels: np.ndarray
  truth: Truth | None

  @functools.cached_property
  def filled_boxes(self) -> np.ndarray:
    """bool [N, H, W]: inside any box of an object."""
    filled = np.zeros(self.images.shape[:3], bool)
    for one, boxes in zip(filled, self.truth.boxes, strict=True):
      for top, left, bottom, right in boxes:
        one[max(top, 0) : bottom, max(left, 0) : right] = True
    return filled


@dataclasses.dataclass(frozen=True)
class Explanation:
  """What was found of a sample.

  Attributes:
    predicted: [N] int32.
    targets: [N] int32, the classes that were asked about.
    probabilities: [N], of the true class.
    maps: {method: [N, H, W] float32}, raw.
    scores: {method: {score: Score}}.
    skipped: {method: why the model cannot serve it}.
    heads: {path: [N, M, h, w]}, the model's own maps.
    faithfulness: {path: Score}, see ``jattn.explain.attention_faithfulness``.
  """

  sample: Sample
  predicted: np.ndarray
  targets: np.ndarray
  probabilities: np.ndarray
  maps: Mapping[str, np.ndarray]
  scores: Mapping[str, Mapping[str, Score]]
  skipped: Mapping[str, str]
  heads: Mapping[str, np.ndarray]
  faithfulness: Mapping[str, Score]


def check_methods(methods: Sequence[str] | None) -> None:
  """Refuses a method that does not exist, before a run is read.

  Raises:
    ConfigError: naming the nearest.
  """
  for method in methods or ():
    try:
      look_up(method, explain.METHODS, noun='method')
    except ValueError as error:
      raise ConfigError(f'--methods: {error}') from None


def cheap(size: tuple[int, int]) -> dict[str, dict[str, int]]:
  """Settings of the costly methods: a quarter of what their defaults cost, seconds for minutes.

  >>> cheap((60, 60))
  {'integrated_gradients': {'nodes': 16}, 'occlusion': {'window': 7, 'stride': 7}}
  """
  window = max(1, min(size) // 8)
  return {
    'integrated_gradients': {'nodes': 16},
    'occlusion': {'window': window, 'stride': window},
  }


def take(dataset: Any, split: str, count: int) -> Sample:
  """The first ``count`` images of a split, or all where there are fewer."""
  batch = next(iter(dataset.eval_batches(split, batch_size=count)))
  rows = np.flatnonzero(batch.mask)
  truth = dataset.truth(split, rows) if isinstance(dataset, SceneDataset) else None
  return Sample(np.asarray(batch.images)[rows], np.asarray(batch.labels)[rows], truth)


class Explainer:
  """Explains images by a model whose variables may change from call to call.

  Everything runs on one device, whatever the run was sharded over.
  """

  def __init__(self, setup: Setup, sample: Sample):
    self.setup, self.sample = setup, sample
    self.images = setup.prepare(jnp.asarray(sample.images))

  def place(self, variables: Any) -> Any:
    """The variables on the device that explains."""
    return jax.device_put(jax.device_get(variables), jax.devices()[0])

  def servable(self, methods: Sequence[str], variables: Any) -> tuple[list[str], dict[str, str]]:
    """The methods that this model can serve, and why it cannot serve the others.

    Nothing is computed: a model that lacks what a method needs is found out while tracing.
    """
    served, skipped = [], {}
    for method in methods:
      maps = functools.partial(explain.explain, method, self.setup.model, key=jax.random.key(0))
      try:
        jax.eval_shape(maps, variables, self.images)
        served.append(method)
      except ValueError as error:
        skipped[method] = str(error)
    return served, skipped

  def maps(
    self, methods: Sequence[str], variables: Any, targets: jax.Array | None = None, *, seed: int = 0
  ) -> dict[str, np.ndarray]:
    """{method: [N, H, W] float32}, raw; of the predicted class where no target is given."""
    key = jax.random.key(seed)
    model, images = self.setup.model, self.images
    settings = cheap(images.shape[1:3])
    return {
      method: np.asarray(
        explain.explain(
          method, model, variables, images, targets, key=key, **settings.get(method, {})
        )
      )
      for method in methods
    }

  def explanation(
    self,
    variables: Any,
    *,
    methods: Sequence[str] | None = None,
    target: str = 'predicted',
    seed: int = 0,
  ) -> Explanation:
    """Maps and scores; ``methods`` None is what the model can serve of ``DEFAULTS``.

    Raises:
      ConfigError: a method that was asked for by name cannot be served.
    """
    variables = self.place(variables)
    served, skipped = self.servable(methods or DEFAULTS, variables)
    if methods and skipped:
      lines = [f'{method} cannot explain this model: {why}' for method, why in skipped.items()]
      raise ConfigError('--methods: ' + '; '.join(lines))
    logits = np.asarray(_logits(self.setup.model, variables, self.images), np.float64)
    predicted = logits.argmax(axis=1).astype(np.int32)
    targets = predicted if target == 'predicted' else self.sample.labels.astype(np.int32)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    asked = jnp.asarray(targets)
    maps = self.maps(served, variables, asked, seed=seed)
    return Explanation(
      sample=self.sample,
      predicted=predicted,
      targets=targets,
      probabilities=shares[np.arange(len(shares)), self.sample.labels],
      maps=maps,
      scores={m: self.scores(variables, a, asked, seed=seed) for m, a in maps.items()},
      skipped=skipped,
      heads=self.heads(variables),
      faithfulness=self.faithfulness(variables, asked),
    )

  def scores(
    self, variables: Any, maps: np.ndarray, targets: jax.Array, *, seed: int
  ) -> dict[str, Score]:
    """Against the boxes of the objects where they are known, and deletion and insertion."""
    scores = {}
    if self.sample.truth is not None:
      for name in AGAINST_BOXES:
        scores[name] = explain.LOCALISATION[name](maps, self.sample.filled_boxes)
    curves = explain.deletion_and_insertion(
      self.setup.model,
      variables,
      self.images,
      jnp.asarray(maps),
      targets,
      key=jax.random.key(seed),
      steps=STEPS,
    )
    return scores | curves.scores()

  def heads(self, variables: Any) -> dict[str, np.ndarray]:
    """The model's own maps, none where it is no classifier of ours."""
    try:
      found = explain.attention_by_head(self.setup.model, variables, self.images)
    except ValueError:
      return {}
    return jax.device_get(in_order(found))

  def faithfulness(self, variables: Any, targets: jax.Array) -> dict[str, Score]:
    """Of every map that speaks of places; none where there is none."""
    try:
      return explain.attention_faithfulness(self.setup.model, variables, self.images, targets)
    except ValueError:
      return {}


@functools.partial(jax.jit, static_argnums=0)
def _logits(model: Any, variables: Any, images: jax.Array) -> jax.Array:
  return model.apply(variables, images, train=False).logits
