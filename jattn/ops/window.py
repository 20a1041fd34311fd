"""Pooling over non-overlapping windows."""

import functools

import chex
import jax
import jax.numpy as jnp


def max_pool(features: jax.Array, *, window: int = 2) -> jax.Array:
  """The maximum of each ``window`` x ``window`` square, stride ``window``, no padding.

  Rows and columns beyond a multiple of the window are dropped, as PyTorch's ``MaxPool2d(window)``
  drops them. The gradient goes to the first maximum in reading order, as PyTorch's and that of
  ``reduce_window``; written as choices between strided slices it is made of choices too, where
  theirs is a scatter, slow on CPU. A window with a NaN gives NaN.

  Args:
    features: [B, H, W, C].
    window: side of the squares, at least 1.

  Returns:
    [B, H // window, W // window, C].

  Raises:
    ValueError: a side is smaller than the window.

  >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
  [[5.0, 7.0], [13.0, 15.0]]
  """
  chex.assert_rank(features, 4)
  height, width = features.shape[1:3]
  if min(height, width) < window:
    raise ValueError(f'{window=} is larger than the {height}x{width} feature map')
  rows, columns = height // window, width // window
  cropped = features[:, : rows * window, : columns * window]
  places = [cropped[:, i::window, j::window] for i in range(window) for j in range(window)]
  return functools.reduce(_first_largest, places)


def _first_largest(a: jax.Array, b: jax.Array) -> jax.Array:
  return jnp.where((a >= b) | jnp.isnan(a), a, b)
