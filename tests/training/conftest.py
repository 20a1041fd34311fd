"""A tiny network with batch norm and dropout, and batches that it can learn."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import training
from jattn.types import Batch

CLASSES = 3


class Tiny(nn.Module):
  """Convolution, batch norm (optional), mean, linear: a stranger's module, returning plain
  logits."""

  batch_norm: bool = True
  dropout: float = 0.0

  @nn.compact
  def __call__(self, images, *, train):
    # A bias before batch norm has no gradient but rounding noise, which Adam would make large.
    x = nn.Conv(6, (3, 3), use_bias=not self.batch_norm)(images)
    if self.batch_norm:
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
    x = nn.relu(x).mean(axis=(1, 2))
    x = nn.Dropout(self.dropout, deterministic=not train)(x)
    return nn.Dense(CLASSES)(x)


def make_batch(step: int, *, size: int = 16) -> Batch:
  """Class by brightness; a function of the step alone."""
  rng = np.random.default_rng(step)
  labels = rng.integers(0, CLASSES, size).astype(np.int32)
  images = rng.integers(0, 60, (size, 6, 6, 3)) + 90 * labels[:, None, None, None]
  return Batch(images.astype(np.uint8), labels, np.ones(size, bool))


def stream(start: int = 0, *, size: int = 16):
  while True:
    yield make_batch(start, size=size)
    start += 1


class Trainer:
  """Everything for one configuration of the tiny network."""

  def __init__(self, *, devices=1, fsdp=1, module=None, ema=False, optimizer=None, **settings):
    self.module = module or Tiny()
    self.mesh = training.make_mesh(devices=jax.devices()[:devices], fsdp=fsdp)
    self.optimizer = optimizer or training.make_optimizer('adamw', 1e-2, weight_decay=0.05)
    self.settings = {'num_classes': CLASSES, **settings}
    self.ema = ema
    self.step = training.make_train_step(
      self.module.apply, self.optimizer, self.mesh, **self.settings
    )

  def state(self, seed=0):
    return training.create_state(
      lambda key: self.module.init(key, jnp.zeros((1, 6, 6, 3)), train=False),
      self.optimizer,
      seed=seed,
      mesh=self.mesh,
      ema=self.ema,
    )

  def run(self, state, steps, *, size=16):
    metrics = []
    for _ in range(steps):
      batch = training.place_batch(make_batch(int(state.step), size=size), self.mesh)
      state, m = self.step(state, batch)
      metrics.append(jax.device_get(m))
    return state, metrics


@pytest.fixture(scope='session')
def trainer():
  return Trainer()
