"""Bytes to the numbers that a model takes."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp


def to_float(images: jax.Array) -> jax.Array:
  """Bytes 0..255 become float32 in [0, 1]; floating images pass through as float32.

  >>> to_float(jnp.array([0, 255], jnp.uint8)).tolist()
  [0.0, 1.0]
  """
  if images.dtype == jnp.uint8:
    return images.astype(jnp.float32) / 255
  return images.astype(jnp.float32)


def normalize(images: jax.Array, *, mean: Sequence[float], std: Sequence[float]) -> jax.Array:
  """``(x - mean) / std`` by channel, on [..., C] images as ``to_float`` gives them.

  Args:
    images: [..., C], uint8 or floating in [0, 1].
    mean: C numbers in the units of [0, 1].
    std: C positive numbers in the units of [0, 1].

  Returns:
    [..., C] float32.

  Raises:
    ValueError: ``mean`` or ``std`` has another length than C, or a ``std`` is not positive.

  >>> normalize(jnp.array([[51]], jnp.uint8), mean=[0.1], std=[0.5]).tolist()
  [[0.20000000298023224]]
  """
  channels = images.shape[-1]
  if len(mean) != channels or len(std) != channels:
    raise ValueError(f'{mean=} and {std=} must each have {channels} numbers, one for each channel')
  if min(std) <= 0:
    raise ValueError(f'{std=} must be positive')
  shape = (1,) * (images.ndim - 1) + (channels,)
  centred = to_float(images) - jnp.asarray(mean, jnp.float32).reshape(shape)
  return centred / jnp.asarray(std, jnp.float32).reshape(shape)
