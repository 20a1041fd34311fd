"""A small batch for every augmentation."""

import jax
import jax.numpy as jnp
import pytest

B, H, W, C, L = 6, 7, 9, 3, 4


@pytest.fixture
def images(rng):
  return jnp.asarray(rng.uniform(size=(B, H, W, C)), jnp.float32)


@pytest.fixture
def labels():
  return jax.nn.one_hot(jnp.arange(B) % L, L)
