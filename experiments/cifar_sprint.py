"""How many seconds to 94.0% on CIFAR-10, on one GPU?

  python -m experiments.cifar_sprint --data-dir DIR --runs 30 --out sprint.jsonl
  python -m experiments.cifar_sprint --data npz:FILE --pool weighted_average

After airbench94 of Jordan 2024, arXiv 2404.00498, with Muon: eight epochs of 2,000 images a step in
bfloat16, data on the device as bytes, a whole epoch in one dispatch (a step at a time on a CPU,
whose gradients of convolutions are slow inside loops). The clock runs from the whitening to the
accuracy of the averaged views; loading, making the parameters and compiling (a run on random labels
comes first) are outside, as there. ``--pool weighted_average`` pools by attention and has the map.

Nothing has been measured on a GPU yet, nor at the full width on a CPU; there
``--width 0.1 --images 2000 --batch-size 200 --runs 1`` shows that it runs.
"""

import dataclasses
import functools
import json
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any

import tyro

from experiments.errors import ConfigError, InputError, run_main

SMOOTHING = 0.2
WHITENING_EPOCHS = 3
WHITENING_IMAGES = 5000
VIEWS_AT_ONCE = 2000


@dataclasses.dataclass(frozen=True)
class Arguments:
  """Trains many times as fast as it goes."""

  data: str = 'tfds:cifar10'
  """Of 32x32 images, by name; npz:FILE needs no TFDS."""
  data_dir: pathlib.Path | None = None
  """Of prepared TFDS sets."""
  runs: int = 30
  """Timed runs, after one on random labels."""
  epochs: int = 8
  """Passes over the training images."""
  batch_size: int = 2000
  """Images in a step."""
  width: float = 1.0
  """Of all stages."""
  pool: str = 'max'
  """'max' as published, or a pooling of jattn."""
  images: int | None = None
  """So many training and test images alone, to try it."""
  seed: int = 0
  """Of the first run; every run has its own."""
  out: pathlib.Path | None = None
  """JSON-lines file to append to; None only prints."""


def main(arguments: Sequence[str]) -> int:
  chosen = tyro.cli(Arguments, args=arguments, prog='python -m experiments.cifar_sprint')
  for name in ('runs', 'epochs', 'batch_size'):
    if getattr(chosen, name) < 1:
      raise ConfigError(f'--{name.replace("_", "-")} must be 1 or more')
  from experiments import environment
  from jattn import pooling

  if chosen.pool != 'max' and chosen.pool not in pooling.POOLINGS:
    raise ConfigError(f'--pool {chosen.pool}: choose max or {", ".join(pooling.POOLINGS)}')
  env = environment.describe()
  sprint = Sprint(chosen, _load(chosen))
  sprint.run(chosen.seed, random_labels=True)
  results = []
  for index in range(chosen.runs):
    results.append(sprint.run(chosen.seed + index))
    accuracy, seconds = results[-1]
    print(f'run {index}: {100 * accuracy:.2f}% in {seconds:.3f} s', flush=True)
  accuracies, seconds = zip(*results, strict=True)
  settings = {
    field.name: getattr(chosen, field.name)
    for field in dataclasses.fields(chosen)
    if field.name not in ('out', 'data_dir')
  }
  line = {
    'id': 'cifar-sprint',
    'accuracy': statistics.fmean(accuracies),
    'accuracies': accuracies,
    'seconds': statistics.fmean(seconds),
    'all_seconds': seconds,
    **settings,
    **{name: env[name] for name in ('device', 'processor', 'cores', 'versions', 'git')},
    'date': time.strftime('%Y-%m-%d'),
  }
  print(json.dumps(line))
  if chosen.out is not None:
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    with open(chosen.out, 'a') as file:
      file.write(json.dumps(line) + '\n')
  return 0


@dataclasses.dataclass(frozen=True)
class Data:
  """Images [N, 32, 32, 3] uint8 and labels [N] of train and test; mean and std of all of train."""

  splits: dict[str, tuple[Any, Any]]
  mean: tuple[float, ...]
  std: tuple[float, ...]
  num_classes: int


def _load(chosen: Arguments) -> Data:
  import jattn.data

  try:
    dataset = jattn.data.load(chosen.data, data_dir=chosen.data_dir, size=32, choose_fraction=0)
    found = {split: dataset.arrays(split) for split in ('train', 'test')}
  except (jattn.data.DataError, ValueError) as error:
    raise InputError(str(error)) from None
  found = {name: (x[: chosen.images], y[: chosen.images]) for name, (x, y) in found.items()}
  if len(found['train'][0]) < chosen.batch_size:
    raise ConfigError(
      f'--batch-size {chosen.batch_size} is above the {len(found["train"][0])} training images'
    )
  return Data(found, dataset.mean, dataset.std, dataset.num_classes)


class Sprint:
  """Compiled parts of a run, and the data on the device."""

  def __init__(self, chosen: Arguments, data: Data):
    import jax
    import jax.numpy as jnp

    from experiments.sprint_parts import SprintNetwork, make_optimizer

    self.chosen = chosen
    self.scanned = jax.default_backend() != 'cpu'
    self.mean, self.std = data.mean, data.std
    self.data = {name: tuple(map(jnp.asarray, arrays)) for name, arrays in data.splits.items()}
    images, _ = data.splits['train']
    self.model = SprintNetwork(
      tuple(max(8, round(chosen.width * width)) for width in (64, 256, 256)),
      pool=chosen.pool,
      num_classes=data.num_classes,
      dtype=jnp.bfloat16 if self.scanned else jnp.float32,
    )
    self.steps = len(images) // chosen.batch_size  # in an epoch
    init = functools.partial(self.model.init, train=False)
    self.init = jax.jit(lambda key: init(key, jnp.zeros((1, 32, 32, 3))))
    params = jax.eval_shape(self.init, jax.random.key(0))['params']
    self.optimizer = make_optimizer(
      params,
      steps=self.steps * chosen.epochs,
      whitening_steps=self.steps * WHITENING_EPOCHS,
      batch_size=chosen.batch_size,
    )
    self.start = jax.jit(self._start)
    self.shuffled = jax.jit(self._shuffled)
    self.step = jax.jit(self._step, donate_argnums=0)
    self.epoch = jax.jit(self._epoch, donate_argnums=0)
    self.score = jax.jit(self._score)

  def run(self, seed: int, *, random_labels: bool = False) -> tuple[float, float]:
    """One run from nothing: test accuracy and seconds."""
    import jax

    key, init_key, label_key = jax.random.split(jax.random.key(seed), 3)
    images, labels = self.data['train']
    if random_labels:
      labels = jax.random.permutation(label_key, labels)
    state = jax.block_until_ready((self.init(init_key), labels))[0]
    begun = time.perf_counter()
    state = self.start(state, images[:WHITENING_IMAGES])
    for epoch in range(self.chosen.epochs):
      if self.scanned:
        state = self.epoch(state, images, labels, key, epoch)
      else:
        x, y = self.shuffled(images, labels, key, epoch)
        for index in range(self.steps):
          state = self.step(state, (x[index], y[index]))
    accuracy = float(self.score(state, *self.data['test']))
    return accuracy, time.perf_counter() - begun

  def _standardised(self, images: Any) -> Any:
    from jattn.ops import normalize

    scaled = normalize(images, mean=self.mean, std=self.std)
    return scaled.astype(self.model.dtype)

  def _start(self, variables: Any, images: Any) -> tuple[Any, Any]:
    from experiments.sprint_parts import whitening_kernel

    kernel = whitening_kernel(self._standardised(images))
    variables = dict(variables, whitening={'kernel': kernel})
    return variables, self.optimizer.init(variables['params'])

  def _shuffled(self, images: Any, labels: Any, key: Any, epoch: Any) -> tuple[Any, Any]:
    """An epoch's batches: flipped by turns, moved by up to two pixels, in a new order."""
    import jax

    from jattn.data.augment import crop

    # The flips of the first epoch are drawn once and turned over in each next one.
    first = jax.random.bernoulli(jax.random.fold_in(key, 0), 0.5, (len(images),))
    move_key, order_key = jax.random.split(jax.random.fold_in(key, epoch + 1))
    x = crop.mirror(self._standardised(images), first ^ (epoch % 2 == 1))
    moves = jax.random.randint(move_key, (len(images), 2), 0, 5)
    x = crop.shift(x, moves, padding=2)
    batch = self.chosen.batch_size
    rows = jax.random.permutation(order_key, len(images))[: self.steps * batch]
    return x[rows].reshape(self.steps, batch, *x.shape[1:]), labels[rows].reshape(-1, batch)

  def _epoch(self, state: Any, images: Any, labels: Any, key: Any, epoch: Any) -> Any:
    import jax

    batches = self._shuffled(images, labels, key, epoch)
    return jax.lax.scan(lambda state, batch: (self._step(state, batch), None), state, batches)[0]

  def _step(self, state: tuple[Any, Any], batch: tuple[Any, Any]) -> tuple[Any, Any]:
    import jax
    import optax

    (variables, moments), (x, y) = state, batch
    whitening = variables['whitening']

    def loss(params):
      given = {**variables, 'params': params}
      found, updated = self.model.apply(given, x, train=True, mutable=['batch_stats'])
      targets = optax.smooth_labels(jax.nn.one_hot(y, self.model.num_classes), SMOOTHING)
      return optax.softmax_cross_entropy(found.logits, targets).sum(), updated

    gradients, updated = jax.grad(loss, has_aux=True)(variables['params'])
    changes, moments = self.optimizer.update(gradients, moments, variables['params'])
    params = optax.apply_updates(variables['params'], changes)
    return {'params': params, 'whitening': whitening, **updated}, moments

  def _score(self, state: tuple[Any, Any], images: Any, labels: Any) -> Any:
    """Accuracy of logits averaged over mirrored views: half as is, half moved by one pixel."""
    import jax
    import jax.numpy as jnp

    from jattn.data.augment import crop

    variables, _ = state

    def both(x):
      pair = (self.model.apply(variables, v, train=False).logits for v in (x, x[:, :, ::-1]))
      return sum(pair) / 2

    def logits(images):
      x = self._standardised(images)
      corners = [jnp.full((len(x), 2), place) for place in (0, 2)]
      moved = sum(both(crop.shift(x, corner, padding=1)) for corner in corners) / 2
      return (both(x) + moved) / 2

    found = jax.lax.map(
      lambda image: logits(image[None])[0], images, batch_size=min(VIEWS_AT_ONCE, len(images))
    )
    return (found.argmax(axis=-1) == labels).mean()


if __name__ == '__main__':
  run_main(main)
