"""Pooling over non-overlapping windows."""

import chex
import jax
import jax.numpy as jnp


def max_pool(features: jax.Array, *, window: int = 2) -> jax.Array:
  """The maximum of each ``window`` x ``window`` square, stride ``window``, no padding.

  Rows and columns beyond a multiple of the window are dropped, as PyTorch's ``MaxPool2d(window)``
  drops them. Written as a reshape and a reduction: its gradient is then a comparison, where that of
  ``reduce_window`` is a scatter, slow on CPU. Ties share the gradient evenly.

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
  batch, height, width, channels = features.shape
  if min(height, width) < window:
    raise ValueError(f'{window=} is larger than the {height}x{width} feature map')
  rows, columns = height // window, width // window
  cropped = features[:, : rows * window, : columns * window]
  squares = cropped.reshape(batch, rows, window, columns, window, channels)
  return jnp.max(squares, axis=(2, 4))
