"""Removed pixels filled in from what is around them."""

import functools

import chex
import jax
import jax.numpy as jnp

from jattn.ops import accumulation_dtype
from jattn.ops.reshape import on_any_mesh


@on_any_mesh('images')
@functools.partial(jax.jit, static_argnames=('tolerance', 'steps'))
def impute(
  images: jax.Array, removed: jax.Array, *, tolerance: float = 1e-6, steps: int = 2000
) -> jax.Array:
  """Every removed pixel becomes the weighted mean of its eight neighbours.

  The linear system ``sum_j w_ij (x_i - x_j) = 0`` for every removed pixel i, over the neighbours j
  in the image, w = 1/6 beside and 1/12 across; known pixels stay. Rong et al. 2022 (ROAD), arXiv
  2202.00449, without their noise. It is symmetric and positive definite where any pixel is known,
  and is solved by conjugate gradients, for each image by itself, from the mean of the known pixels;
  an image with none becomes zero.

  Args:
    images: [B, H, W, C].
    removed: bool [B, H, W].
    tolerance: size of the residual, relative to the right-hand side, at which an image is done.
    steps: at most so many.

  Returns:
    [B, H, W, C].

  >>> line = jnp.array([[[[0.0], [9.0], [2.0]]]])
  >>> impute(line, jnp.array([[[False, True, False]]])).ravel().round(4).tolist()
  [0.0, 1.0, 2.0]
  """
  chex.assert_rank((images, removed), (4, 3))
  chex.assert_equal_shape_prefix((images, removed), 3)
  gone = removed[..., None]
  around = _neighbours(jnp.ones((1, *images.shape[1:3], 1)))

  def one(image: jax.Array, gone: jax.Array) -> jax.Array:
    known = jnp.where(gone, 0, image)
    count = jnp.sum(~gone)
    mean = jnp.sum(known, axis=(0, 1)) / jnp.maximum(count, 1)

    def apply(x: jax.Array) -> jax.Array:
      x = jnp.where(gone, x, 0)
      return jnp.where(gone, around[0] * x - _neighbours(x[None])[0], 0)

    right = jnp.where(gone, _neighbours(known[None])[0], 0)
    # From the mean, written as what is missing to it, so that flat images need no step.
    start = jnp.where(gone, mean[None, None], 0)
    found, _ = jax.scipy.sparse.linalg.cg(apply, right - apply(start), tol=tolerance, maxiter=steps)
    return jnp.where(gone, start + found, image)

  whole = images.astype(accumulation_dtype(images))
  return jax.vmap(one)(whole, gone).astype(images.dtype)


def _neighbours(x: jax.Array) -> jax.Array:
  """``sum_j w_j x_j`` over the eight neighbours in the image, [B, H, W, C].

  The weights are the products of (1, 2, 1) over 12, less that of the pixel itself.
  """
  rows = jnp.pad(x, ((0, 0), (1, 1), (0, 0), (0, 0)))
  down = rows[:, :-2] + 2 * x + rows[:, 2:]
  columns = jnp.pad(down, ((0, 0), (0, 0), (1, 1), (0, 0)))
  return (columns[:, :, :-2] + 2 * down + columns[:, :, 2:]) / 12 - x / 3
