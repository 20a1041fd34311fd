"""Maps that know nothing of the network: what an explanation has to beat."""

import jax
import jax.numpy as jnp

from jattn.explain.subject import Subject


def random(subject: Subject) -> jax.Array:
  """Uniform numbers, each pixel by itself: [B, H, W], in 0..1. Needs a key."""
  return jax.random.uniform(subject.draw(), subject.images.shape[:3])


def centre(subject: Subject) -> jax.Array:
  """``exp(-r^2 / 2)``, r from the centre in quarters of the sides: [B, H, W], in 0..1."""
  shape = subject.images.shape[:3]
  y, x = (4 * ((jnp.arange(n) + 0.5) / n - 0.5) for n in shape[1:])
  return jnp.broadcast_to(jnp.exp(-(y[:, None] ** 2 + x[None] ** 2) / 2)[None], shape)


def edges(subject: Subject) -> jax.Array:
  """Sobel's gradient magnitude of the mean over the channels, border repeated: [B, H, W], >= 0."""
  grey = jnp.pad(subject.images.mean(axis=-1), ((0, 0), (1, 1), (1, 1)), mode='edge')

  def smooth(a: jax.Array, axis: int) -> jax.Array:
    first, second, third = (jnp.arange(n, a.shape[axis] - 2 + n) for n in range(3))
    take = jnp.take
    return take(a, first, axis) + 2 * take(a, second, axis) + take(a, third, axis)

  down = smooth(grey[:, 2:] - grey[:, :-2], 2)
  along = smooth(grey[:, :, 2:] - grey[:, :, :-2], 1)
  return jnp.sqrt(down**2 + along**2)


def constant(subject: Subject) -> jax.Array:
  """One everywhere: [B, H, W]."""
  return jnp.ones(subject.images.shape[:3])
