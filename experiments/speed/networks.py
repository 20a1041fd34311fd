"""C1, C2, C3, C5: networks of jattn beside the same networks in PyTorch.

A training step is the loss, all gradients and AdamW with decay 0.05 on matrices, dropout on, on
fixed images of 32x32 in memory: no augmentation, no loading. Of PyTorch's settings (eager and
compiled, both layouts) the fastest counts.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jattn
from experiments.errors import RunError
from experiments.speed import clock

BATCH = 128


def seed_step(rounds: int, batch: int = BATCH) -> dict[str, Any]:
  """C1: the seed's classifier, float32."""
  return _training('C1', 'seed_classifier', rounds, batch)


def seed_step_bfloat16(rounds: int, batch: int = BATCH) -> dict[str, Any]:
  """C2: the same in bfloat16, with float32 parameters, against autocast."""
  return _training('C2', 'seed_classifier', rounds, batch, half=True)


def residual_step(rounds: int, batch: int = BATCH) -> dict[str, Any]:
  """C5: ResNet-20, plain and with squeeze-and-excitation; ``ratio`` is the smaller."""
  rows = {
    name: _training('C5', name, rounds, batch, attention=attention)
    for name, attention in (('plain', None), ('squeeze_excite', 'squeeze_excite'))
  }
  worst = min(rows.values(), key=lambda row: row['ratio'])
  return {'id': 'C5', 'ratio': worst['ratio'], 'networks': rows}


def seed_forward(rounds: int, batches: tuple[int, ...] = (1, BATCH)) -> dict[str, Any]:
  """C3: logits of the seed's classifier, float32 and bfloat16; ``ratio`` is the smallest."""
  from experiments.speed import torch_models

  shapes = []
  for batch in batches:
    images, labels = _batch(batch)
    for half in (False, True):
      others, missing = torch_models.steps(
        torch_models.seed, images, labels, half=half, forward=True
      )
      model, variables = _model('seed_classifier', images, half)
      apply = jax.jit(lambda v, x, model=model: model.apply(v, x, train=False).logits)
      x = jnp.asarray(images)

      def forward(apply=apply, variables=variables, x=x):
        return jax.block_until_ready(apply(variables, x))

      times = clock.take_turns({'jattn': forward} | others, rounds)
      dtype = 'bfloat16' if half else 'float32'
      shapes.append(
        {'batch': batch, 'dtype': dtype, **clock.against(times, 'jattn'), 'missing': missing}
      )
  return {'id': 'C3', 'ratio': min(shape['ratio'] for shape in shapes), 'shapes': shapes}


def _training(
  row: str,
  name: str,
  rounds: int,
  batch: int,
  *,
  half: bool = False,
  attention: str | None = None,
) -> dict[str, Any]:
  from experiments.speed import torch_models

  images, labels = _batch(batch)
  if name == 'seed_classifier':
    make, settings = torch_models.seed, {}
  else:
    name, settings = 'resnet20', {'attention': attention}

    def make():
      return torch_models.ResNet20(attention is not None)

  others, missing = torch_models.steps(make, images, labels, half=half)
  model, variables = _model(name, images, half, **settings)
  ours = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  theirs = sum(p.numel() for p in make().parameters())
  if ours != theirs:
    raise RunError(f'{name}: {ours} parameters, in PyTorch {theirs}')
  times = clock.take_turns({'jattn': _step(model, variables, images, labels)} | others, rounds)
  return {'id': row, **clock.against(times, 'jattn'), 'batch': batch, 'missing': missing}


def _batch(batch: int) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  images = rng.normal(size=(batch, 32, 32, 3)).astype(np.float32)
  return images, rng.integers(0, 10, batch).astype(np.int32)


def _model(name: str, images: np.ndarray, half: bool, **settings: Any) -> tuple[Any, Any]:
  dtype = jnp.bfloat16 if half else None
  model = jattn.create_model(name, num_classes=10, dtype=dtype, **settings)
  return model, jax.jit(lambda key, x: model.init(key, x, train=False))(
    jax.random.key(0), jnp.asarray(images[:1])
  )


def _step(model: Any, variables: Any, images: np.ndarray, labels: np.ndarray) -> clock.Step:
  rule = optax.adamw(1e-3, weight_decay=0.05, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p))
  x, y = jnp.asarray(images), jnp.asarray(labels)
  rest, params = dict(variables), variables['params']
  del rest['params']

  @jax.jit
  def step(params, rest, moments, key):
    key, dropout = jax.random.split(key)

    def loss(params):
      prediction, updated = model.apply(
        {'params': params, **rest}, x, train=True, mutable=list(rest), rngs={'dropout': dropout}
      )
      logits = prediction.logits.astype(jnp.float32)
      return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updated

    (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(params)
    changes, moments = rule.update(gradients, moments, params)
    return optax.apply_updates(params, changes), updated, moments, key, value

  state = [params, rest, rule.init(params), jax.random.key(0)]

  def run():
    *state[:], value = step(*state)
    return jax.block_until_ready((state, value))

  return run
