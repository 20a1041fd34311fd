"""C1, C2, C3, C5: networks of jattn beside the same networks in PyTorch.

A training step is the loss, all gradients and AdamW with decay 0.05 on matrices, dropout on, on
fixed images of 32x32 in memory: no augmentation, no loading. Of PyTorch's settings (eager and
compiled, both layouts) the fastest counts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from experiments.errors import RunError
from experiments.speed import clock
from experiments.speed.training_step import TrainingStep, draw, start

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
    images, labels = draw(batch)
    for half in (False, True):
      others, missing = torch_models.steps(
        torch_models.seed, images, labels, half=half, forward=True
      )
      model, variables = start('seed_classifier', images, half)
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

  images, labels = draw(batch)
  if name == 'seed_classifier':
    make, settings = torch_models.seed, {}
  else:
    name, settings = 'resnet20', {'attention': attention}

    def make():
      return torch_models.ResNet20(attention is not None)

  others, missing = torch_models.steps(make, images, labels, half=half)
  step = TrainingStep(name, images, labels, half=half, **settings)
  theirs = sum(p.numel() for p in make().parameters())
  if step.parameters != theirs:
    raise RunError(f'{name}: {step.parameters} parameters, in PyTorch {theirs}')
  ours = {'jattn': lambda: jax.block_until_ready((step(), step.state))}
  times = clock.take_turns(ours | others, rounds)
  found = {'id': row, **clock.against(times, 'jattn'), 'batch': batch, 'missing': missing}
  return found | step.cost()
