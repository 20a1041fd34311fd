"""A convolution that is fast on CPU too, forward and backward."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jattn.ops.winograd import filter_images, tiles, transform_kernel

_Sides = tuple[tuple[int, int], ...]

# Fewer products than these take lax less time than a loop takes to compile and to start.
_LEAST_PRODUCTS = 2**24
# Numbers in the patches and cotangents of the images taken at a time: what stays in the cache. On
# the layers of the classifiers for CIFAR a quarter or four times as many cost a tenth more.
_PART = 800_000
# One image may have so many times more than that; beyond, its patches do not even fit in memory
# caches that cores share, and nothing was measured.
_LARGEST = 10
# A matrix product over fewer positions does not pay for the loop around it.
_LEAST_POSITIONS = 256
# With fewer features making the patches costs more than the products save.
_LEAST_FEATURES = 64
# The same for Winograd's form, whose transforms cost as much for each channel and feature.
_LEAST_CHANNELS = 32
# Numbers it transforms at a time; it gains from many, as the kernel's are read for every part.
_TRANSFORMED = 8_000_000
# Products it takes for each of the direct form's; a quarter where the tiles fit the image.
_MOST_PRODUCTS = 0.4


def convolve(
  lhs: jax.Array,
  rhs: jax.Array,
  window_strides: Sequence[int],
  padding: str | Sequence[tuple[int, int]],
  lhs_dilation: Sequence[int] | None = None,
  rhs_dilation: Sequence[int] | None = None,
  dimension_numbers: lax.ConvGeneralDilatedDimensionNumbers = None,
  feature_group_count: int = 1,
  batch_group_count: int = 1,
  precision: lax.PrecisionLike = None,
  preferred_element_type: jax.typing.DTypeLike | None = None,
) -> jax.Array:
  """``jax.lax.conv_general_dilated`` for ``flax.linen.Conv(conv_general_dilated=convolve)``.

  XLA on CPU computes the gradient by the kernel, ``sum_p patch_p^T g_p`` over the positions p of
  the output, as a convolution with a window of the size of the image, two to twenty times slower
  than need be. On one CPU device it is written as matrix products of patches, some images at a
  time (im2col; Chellapilla et al. 2006, hal inria-00112631), and so are the value and the gradient
  by x where that is faster (see ``_value_by_products``). The patches are made where they are used,
  not kept. Windows of 3x3 at a stride of one, between 32 channels and features or more, take a
  quarter of the multiplications (Winograd; Lavin & Gray 2016, arXiv 1509.09308; see
  ``jattn.ops.winograd``): float32 errors are then about twice lax's. Lowered for another platform,
  or where it would not gain (see ``_images_at_a_time``), all is lax's. Forward mode, higher
  derivatives and ``vmap`` work as lax's do.

  Args:
    lhs: x; the fast form is for [B, H, W, C].
    rhs: the kernel; the fast form is for [kh, kw, C, D].
    window_strides, padding, lhs_dilation, rhs_dilation, dimension_numbers, feature_group_count,
      batch_group_count, precision, preferred_element_type: as for lax.

  Returns:
    As lax: for these layouts [B, H', W', D] in the type of the operands.

  >>> x, kernel = jnp.ones((1, 3, 3, 1)), jnp.ones((3, 3, 1, 1))
  >>> y = convolve(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
  >>> y[0, :, :, 0].tolist()
  [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
  """
  settings = {
    'lhs_dilation': lhs_dilation,
    'rhs_dilation': rhs_dilation,
    'dimension_numbers': dimension_numbers,
    'feature_group_count': feature_group_count,
    'batch_group_count': batch_group_count,
    'precision': precision,
    'preferred_element_type': preferred_element_type,
  }
  strides = tuple(window_strides)
  if _is_plain(lhs, rhs, settings):
    sides = _sides(padding, lhs.shape[1:3], rhs.shape[:2], strides)
    if _images_at_a_time(lhs, rhs, strides, sides):
      return _convolve(lhs, rhs, strides, sides)
  return lax.conv_general_dilated(lhs, rhs, strides, padding, **settings)


def _is_plain(x: jax.Array, kernel: jax.Array, settings: dict) -> bool:
  """Whether it is a convolution of images channels last, of whole numbers of images, no more."""
  if x.ndim != 4 or x.dtype != kernel.dtype or x.dtype not in (jnp.float32, jnp.bfloat16):
    return False
  if not isinstance(x.shape[0], int):  # a symbol of jax.export
    return False
  layout, given = (
    lax.conv_dimension_numbers(x.shape, kernel.shape, numbers)
    for numbers in (('NHWC', 'HWIO', 'NHWC'), settings['dimension_numbers'])
  )
  dilations = {*(settings['lhs_dilation'] or (1,)), *(settings['rhs_dilation'] or (1,))}
  groups = {settings['feature_group_count'], settings['batch_group_count']}
  asked = settings['precision'] is not None or settings['preferred_element_type'] is not None
  return given == layout and dilations | groups == {1} and not asked


def _sides(
  padding: str | Sequence[tuple[int, int]],
  size: tuple[int, int],
  window: tuple[int, int],
  strides: tuple[int, ...],
) -> _Sides:
  """What is added before and after each axis."""
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, window, strides, padding)
  return tuple((before, after) for before, after in padding)


def _grid(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides
) -> tuple[int, ...]:
  """(H', W')."""
  return tuple(
    (size + sum(side) - window) // stride + 1
    for size, side, window, stride in zip(
      x.shape[1:3], sides, kernel.shape[:2], strides, strict=True
    )
  )


def _images_at_a_time(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides
) -> int:
  """How many images are taken at a time, a divisor of B; 0 where all is left to lax.

  Here and in ``_value_by_products`` is all that was measured: the layers of the seed classifier and
  of ResNet-20 at batch 128 and some of ResNet-50 at batch 32, on two cores with AVX2.
  """
  if jax.default_backend() != 'cpu' or jax.device_count() > 1:
    return 0  # a loop over images would gather the batch of all devices on each
  batch, width = x.shape[0], math.prod(kernel.shape[:3])
  positions = math.prod(_grid(x, kernel, strides, sides))
  if min(min(side) for side in sides) < 0:
    return 0
  if batch * positions * math.prod(kernel.shape) < _LEAST_PRODUCTS:
    return 0
  if kernel.shape[:2] == strides == (1, 1):
    return batch  # the patches are the image itself
  if _by_tiles(x, kernel, strides, sides):
    each = math.prod(tiles(_grid(x, kernel, strides, sides))) * 36 * sum(kernel.shape[2:])
    return _largest_part(batch, _TRANSFORMED // each)
  each = positions * (width + kernel.shape[-1])
  if each > _LARGEST * _PART:
    return 0
  images = _largest_part(batch, _PART // each)
  return images if images * positions >= _LEAST_POSITIONS else 0


def _largest_part(batch: int, most: int) -> int:
  """The largest divisor of the batch that is at most ``most``; one if there is none."""
  return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n <= most))


def _by_tiles(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides) -> bool:
  """Whether Winograd's form is the faster one, for the value and for both gradients."""
  if kernel.shape[:2] != (3, 3) or strides != (1, 1):
    return False
  if min(kernel.shape[2:]) < _LEAST_CHANNELS:
    return False
  size = _grid(x, kernel, strides, sides)
  least = x.shape[0] * math.prod(tiles(size))
  return least >= _LEAST_POSITIONS and 4 * math.prod(tiles(size)) <= _MOST_PRODUCTS * math.prod(
    size
  )


def _plain(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(x, kernel, strides, sides, dimension_numbers=numbers)


def _value_by_products(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides
) -> bool:
  """Whether the value and the gradient by x are faster as products too, not the kernel's alone."""
  *window, _, features = kernel.shape
  if window == [1, 1] or _by_tiles(x, kernel, strides, sides):
    return True
  each = math.prod(_grid(x, kernel, strides, sides)) * (math.prod(kernel.shape[:3]) + features)
  return features >= _LEAST_FEATURES and max(strides) == 1 and each <= _PART


def _products(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides):
  """By products where it is lowered for a CPU."""
  forms = (functools.partial(form, strides=strides, sides=sides) for form in (_by_products, _plain))
  return lax.platform_dependent(x, kernel, **dict(zip(('cpu', 'default'), forms, strict=True)))


def _value(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides):
  form = _products if _value_by_products(x, kernel, strides, sides) else _plain
  return form(x, kernel, strides, sides)


def _change_by_image(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides):
  """The value, in the form whose transpose is fast: that is what JAX makes the gradient by x of.

  Where that gradient, a convolution with the kernel turned around, is faster by tiles, the value is
  written as the transpose of it; the transpose of the tiles' own form would be slower.
  """
  turned = jnp.swapaxes(jnp.flip(kernel, (0, 1)), 2, 3)
  around = tuple((2 - before, 2 - after) for before, after in sides)
  y = jax.ShapeDtypeStruct(
    (x.shape[0], *_grid(x, kernel, strides, sides), kernel.shape[3]), x.dtype
  )
  if not _by_tiles(y, turned, strides, around) or not _images_at_a_time(y, turned, strides, around):
    return _value(x, kernel, strides, sides)
  gradient = functools.partial(_products, kernel=turned, strides=strides, sides=around)
  return jax.linear_transpose(gradient, y)(x)[0]


def _change_by_kernel(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides):
  """The same for the kernel: ``sum_p patch_p^T g_p``, or by rows where that is faster."""
  if not _by_rows(x, kernel, strides, sides):
    return _products(x, kernel, strides, sides)
  size = _grid(x, kernel, strides, sides)
  y = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), x.dtype)

  def by_lax(g: jax.Array) -> jax.Array:
    value = functools.partial(_plain, x, strides=strides, sides=sides)
    return jax.linear_transpose(value, kernel)(g)[0]

  by_rows = functools.partial(_kernel_by_rows, x, window=kernel.shape[:2], sides=sides)

  def gradient(g: jax.Array) -> jax.Array:
    return lax.platform_dependent(g, cpu=by_rows, default=by_lax)

  return jax.linear_transpose(gradient, y)(kernel)[0]


def _by_rows(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides) -> bool:
  """Whether the gradient by the kernel copies less by rows than by patches."""
  height, width, channels, features = kernel.shape
  if max(strides) > 1 or _by_tiles(x, kernel, strides, sides):
    return False
  return width * channels + height * features < height * width * channels


def _kernel_by_rows(
  x: jax.Array, g: jax.Array, *, window: tuple[int, int], sides: _Sides
) -> jax.Array:
  """``dk[r, c] = sum_t x[t, . + c]^T g[t - r, .]``: x shifted along rows, g across them.

  One product of [W * C, N] and [N, H * D] numbers, of which patches would need [H * W * C, N].
  """
  (height, width), (batch, rows, _, channels) = window, x.shape
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

  each = rows * size[1] * (width * channels + height * features)
  images = _largest_part(batch, _PART // each)
  parts = (a.reshape(-1, images, *a.shape[1:]) for a in (x, g))
  total = jnp.zeros((width * channels, height * features), jnp.float32)
  total, _ = lax.scan(lambda total, part: (total + product(*part), None), total, tuple(parts))
  total = total.reshape(width, channels, height, features)
  return jnp.transpose(total, (2, 0, 1, 3)).astype(x.dtype)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides):
  return _value(x, kernel, strides, sides)


@functools.partial(_convolve.defjvp, symbolic_zeros=True)
def _derivative(strides, sides, primals, tangents):
  """The rule of a product, whose two terms are what JAX transposes for the gradients.

  A rule for forward mode, not for the transpose, so that both modes work: the transpose of the sum
  of matrix products below is made of products too.
  """
  (x, kernel), (dx, dkernel) = primals, tangents
  parts = []
  if not isinstance(dx, SymbolicZero):
    parts.append(_change_by_image(dx, kernel, strides, sides))
  if not isinstance(dkernel, SymbolicZero):
    parts.append(_change_by_kernel(x, dkernel, strides, sides))
  return _value(x, kernel, strides, sides), functools.reduce(jnp.add, parts)


def _by_products(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: _Sides):
  """The convolution as matrix products, some images at a time, accumulated in float32."""
  batch, size = x.shape[0], _grid(x, kernel, strides, sides)
  images = _images_at_a_time(x, kernel, strides, sides)
  if _by_tiles(x, kernel, strides, sides):
    weights = transform_kernel(kernel)
    form = functools.partial(filter_images, sides=sides, size=size)
  else:
    weights = kernel.astype(jnp.float32)
    form = functools.partial(_by_patches, strides=strides, sides=sides, size=size)

  # Otherwise the patches of all images would be made in the forward pass and kept.
  product = jax.checkpoint(form, prevent_cse=False)
  if images == batch:
    return product(x, weights).astype(x.dtype)
  parts = x.reshape(batch // images, images, *x.shape[1:])
  _, y = lax.scan(lambda _, part: (None, product(part, weights)), None, parts)
  return y.reshape(batch, *size, -1).astype(x.dtype)


def _by_patches(
  x: jax.Array,
  kernel: jax.Array,
  strides: tuple[int, ...],
  sides: _Sides,
  size: tuple[int, ...],
) -> jax.Array:
  """Every position's window as a row of one matrix, times the kernel as another."""
  padded = jnp.pad(x.astype(jnp.float32), ((0, 0), *sides, (0, 0)))
  rows, columns = (
    [slice(i, i + (count - 1) * stride + 1, stride) for i in range(side)]
    for count, stride, side in zip(size, strides, kernel.shape[:2], strict=True)
  )
  patches = jnp.concatenate([padded[:, r, c] for r in rows for c in columns], axis=-1)
  matrix = kernel.reshape(-1, kernel.shape[-1])
  return jnp.dot(patches.reshape(-1, len(matrix)), matrix).reshape(x.shape[0], *size, -1)
