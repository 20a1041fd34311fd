"""Pooling over non-overlapping windows."""

import functools

import chex
import jax
import jax.numpy as jnp

from jattn.ops.reshape import reshape


def max_pool(features: jax.Array, *, window: int = 2) -> jax.Array:
  """The maximum of each ``window`` x ``window`` square, stride ``window``, no padding.

  Rows and columns beyond a multiple of the window are dropped, as PyTorch's ``MaxPool2d(window)``
  drops them. The gradient goes to the first maximum in reading order, as PyTorch's and that of
  ``reduce_window``; it is written in one pass from the place of the maximum, kept as a byte, where
  that of ``reduce_window`` is a scatter, slow on CPU. A window with a NaN gives NaN.

  Args:
    features: [B, H, W, C].
    window: side of the squares, at least 1.

  Returns:
    [B, H // window, W // window, C].

  Raises:
    ValueError: a side is smaller than the window, or the window smaller than 1.

  >>> max_pool(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
  [[5.0, 7.0], [13.0, 15.0]]
  """
  chex.assert_rank(features, 4)
  height, width = features.shape[1:3]
  if window < 1:
    raise ValueError(f'{window=} must be at least 1')
  if min(height, width) < window:
    raise ValueError(f'{window=} is larger than the {height}x{width} feature map')
  return _max_pool(features, window)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _max_pool(features: jax.Array, window: int) -> jax.Array:
  return _largest(features, window)[0]


@_max_pool.defjvp
def _derivative(window, primals, tangents):
  """The change at the place of the maximum, a sum whose transpose writes each place once.

  Rows are folded into the batch: XLA's reductions on CPU have failed from seven axes on, and
  ``vmap`` adds one.
  """
  (features,), (change,) = primals, tangents
  y, place = _largest(features, window)
  batch, rows, columns, channels = y.shape
  squares = reshape(
    change[:, : rows * window, : columns * window], batch * rows, window, columns, window, channels
  )
  places = jnp.arange(window**2, dtype=place.dtype).reshape(1, window, 1, window, 1)
  here = reshape(place, batch * rows, 1, columns, 1, channels) == places
  return y, reshape(jnp.where(here, squares, 0).sum((1, 3)), *y.shape)


def _largest(features: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
  """The maximum of each square and the number of its place in reading order."""
  rows, columns = features.shape[1] // window, features.shape[2] // window
  cropped = features[:, : rows * window, : columns * window]
  places = [cropped[:, i::window, j::window] for i in range(window) for j in range(window)]
  best, number = places[0], jnp.zeros(places[0].shape, jnp.int8 if window < 12 else jnp.int32)
  for index, other in enumerate(places[1:], 1):
    stays = (best >= other) | jnp.isnan(best)
    best, number = jnp.where(stays, best, other), jnp.where(stays, number, index)
  return best, number
