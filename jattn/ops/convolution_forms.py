"""A convolution of images channels last and its gradient by the kernel, written as products."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

Sides = tuple[tuple[int, int], ...]


def are_side_by_side(window: tuple[int, int], strides: tuple[int, int], sides: Sides) -> bool:
  """Whether no number of the images is in two windows, and none is padding."""
  return window == strides and not any(map(sum, sides))


def by_patches(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, int], sides: Sides, size: tuple[int, int]
) -> jax.Array:
  """Every position's window as a row of one matrix, times the kernel as another.

  im2col (Chellapilla et al. 2006, hal inria-00112631).

  Args:
    x: [b, H, W, C], computed in float32.
    kernel: [kh, kw, C, D] float32.
    strides: of H and W.
    sides: zeros before and after H and W.
    size: (H', W').

  Returns:
    [b, H', W', D] float32.

  >>> x, kernel = jnp.arange(4.0).reshape(1, 1, 4, 1), jnp.ones((1, 2, 1, 1))
  >>> by_patches(x, kernel, (1, 2), ((0, 0), (0, 0)), (1, 2))[0, 0, :, 0].tolist()
  [1.0, 5.0]
  """
  x, window = x.astype(jnp.float32), kernel.shape[:2]
  if are_side_by_side(window, strides, sides):
    rows, columns = (count * side for count, side in zip(size, window, strict=True))
    squares = x[:, :rows, :columns].reshape(-1, size[0], window[0], size[1], window[1], x.shape[3])
    patches = jnp.swapaxes(squares, 2, 3)
  else:
    padded = jnp.pad(x, ((0, 0), *sides, (0, 0)))
    patches = jnp.concatenate([padded[:, r, c] for r, c in _places(window, strides, size)], axis=-1)
  matrix = kernel.reshape(-1, kernel.shape[-1])
  return jnp.dot(patches.reshape(-1, len(matrix)), matrix).reshape(x.shape[0], *size, -1)


def _places(
  window: tuple[int, int], strides: tuple[int, int], size: tuple[int, int]
) -> list[tuple[slice, slice]]:
  """Where the numbers at one place of all windows are, for every place in reading order."""
  rows, columns = (
    [slice(i, i + (count - 1) * stride + 1, stride) for i in range(side)]
    for count, stride, side in zip(size, strides, window, strict=True)
  )
  return [(r, c) for r in rows for c in columns]


def kernel_by_planes(
  x: jax.Array,
  g: jax.Array,
  *,
  window: tuple[int, int],
  strides: tuple[int, int],
  sides: Sides,
  images: int,
) -> jax.Array:
  """``dk = sum_p patch_p^T g_p``, the patches of an image as [kh * kw * C, H' * W'] numbers.

  Channels first: where an image has few of them, so long rows are copied, not three numbers at a
  time, and the product of [kh * kw * C, N] and [N, D] needs no transpose.

  Args:
    x: [B, H, W, C], computed in float32.
    g: [B, H', W', D].
    window: (kh, kw).
    strides: of H and W.
    sides: zeros before and after H and W.
    images: how many are taken at a time, a divisor of B.

  Returns:
    [kh, kw, C, D] in the type of ``x``.

  >>> x, g = jnp.arange(4.0).reshape(1, 1, 4, 1), jnp.ones((1, 1, 3, 1))
  >>> settings = {'strides': (1, 1), 'sides': ((0, 0), (0, 0)), 'images': 1}
  >>> kernel_by_planes(x, g, window=(1, 2), **settings)[0, :, 0, 0].tolist()
  [3.0, 6.0]
  """
  channels, (*size, features) = x.shape[3], g.shape[1:]
  places = _places(window, strides, tuple(size))

  # XLA splits a sum of more than 32, which the library it calls for products then takes long for.
  groups = max(n for n in range(1, min(images, 32) + 1) if images % n == 0)

  def product(part: jax.Array, change: jax.Array) -> jax.Array:
    part = part.astype(jnp.float32).reshape(groups, -1, *part.shape[1:])
    padded = jnp.pad(jnp.moveaxis(part, 4, 1), ((0, 0), (0, 0), (0, 0), *sides))
    patches = jnp.concatenate([padded[..., r, c] for r, c in places], axis=1)
    patches = patches.reshape(groups, len(places) * channels, -1)
    change = change.astype(jnp.float32).reshape(groups, -1, features)
    return jnp.sum(jnp.einsum('bap,bpd->bad', patches, change), axis=0)

  total = _total(product, x, g, images)
  return total.reshape(*window, channels, features).astype(x.dtype)


def kernel_by_rows(
  x: jax.Array, g: jax.Array, *, window: tuple[int, int], sides: Sides, images: int
) -> jax.Array:
  """``dk[r, c] = sum_t x[t, . + c]^T g[t - r, .]``: x shifted along rows, g across them.

  One product of [kw * C, N] and [N, kh * D] numbers, of which patches would need [kh * kw * C, N].
  For strides of one.

  Args:
    x: [B, H, W, C], computed in float32.
    g: [B, H', W', D].
    window: (kh, kw).
    sides: zeros before and after H and W.
    images: how many are taken at a time, a divisor of B.

  Returns:
    [kh, kw, C, D] in the type of ``x``.

  >>> x, g = jnp.arange(4.0).reshape(1, 1, 4, 1), jnp.ones((1, 1, 3, 1))
  >>> kernel_by_rows(x, g, window=(1, 2), sides=((0, 0), (0, 0)), images=1)[0, :, 0, 0].tolist()
  [3.0, 6.0]
  """
  (height, width), (rows, channels) = window, (x.shape[1], x.shape[3])
  (before, _), along = sides
  size, features = g.shape[1:3], g.shape[3]

  def product(part: jax.Array, change: jax.Array) -> jax.Array:
    padded = jnp.pad(part.astype(jnp.float32), ((0, 0), (0, 0), along, (0, 0)))
    shifted = [padded[:, :, c : c + size[1]] for c in range(width)]
    # Row t of x meets row t + before - r of g.
    ends = (height - 1 - before, rows + before - size[0])
    padded = lax.pad(change.astype(jnp.float32), 0.0, [(0, 0, 0), (*ends, 0), (0, 0, 0), (0, 0, 0)])
    across = [padded[:, height - 1 - r : height - 1 - r + rows] for r in range(height)]
    left, right = (jnp.concatenate(parts, axis=-1) for parts in (shifted, across))
    left, right = left.reshape(-1, width * channels), right.reshape(-1, height * features)
    return jnp.einsum('pa,pb->ab', left, right)

  total = _total(product, x, g, images).reshape(width, channels, height, features)
  return jnp.transpose(total, (2, 0, 1, 3)).astype(x.dtype)


def _total(
  product: Callable[[jax.Array, jax.Array], jax.Array], x: jax.Array, g: jax.Array, images: int
) -> jax.Array:
  """The sum of ``product`` over parts of the batch.

  A checkpoint, for what it makes of x would otherwise be made in the forward pass and kept.
  """
  product = jax.checkpoint(product, prevent_cse=False)
  if images == x.shape[0]:
    return product(x, g)
  parts = tuple(a.reshape(-1, images, *a.shape[1:]) for a in (x, g))
  shape = jax.eval_shape(product, *(jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for a in parts))
  zeros = jnp.zeros(shape.shape, shape.dtype)
  return lax.scan(lambda total, part: (total + product(*part), None), zeros, parts)[0]
