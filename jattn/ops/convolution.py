"""A convolution that is fast on CPU too, forward and backward."""

import functools
import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.sharding import NamedSharding, PartitionSpec

from jattn.ops.convolution_forms import (
  Sides,
  are_side_by_side,
  by_patches,
  kernel_by_planes,
  kernel_by_rows,
)
from jattn.ops.winograd import filter_images, tiles, transform_kernel

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
# Images have at most so many channels; with eight, planes were slower than patches.
_FEW_CHANNELS = 4
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
  time (im2col; Chellapilla et al. 2006, hal inria-00112631), of narrow layers as one of rows, of
  images channels first (see ``jattn.ops.convolution_forms``), and so are the value and the gradient
  by x where that is faster (see ``_value_by_products``). The patches are made where they are used,
  not kept. Windows of 3x3 at a stride of one, between 32 channels and features or more, take a
  quarter of the multiplications (Winograd; Lavin & Gray 2016, arXiv 1509.09308; see
  ``jattn.ops.winograd``): float32 errors are then about twice lax's. Lowered for another platform,
  or where it would not gain (see ``_images_at_a_time``), or of images on a mesh with explicit axes,
  all is lax's. Forward mode, higher derivatives and ``vmap`` work as lax's do.

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
  if any(place is not None for place in jax.typeof(lhs).sharding.spec):
    return _on_a_mesh(lhs, rhs, strides, padding, settings)
  if _is_plain(lhs, rhs, settings):
    sides = _sides(padding, lhs.shape[1:3], rhs.shape[:2], strides)
    if _images_at_a_time(lhs, rhs, strides, sides):
      return _convolve(lhs, rhs, strides, sides)
  return lax.conv_general_dilated(lhs, rhs, strides, padding, **settings)


def _on_a_mesh(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding, settings: dict
) -> jax.Array:
  """lax's, its output where the images are; JAX 0.10 has no gradient for explicit axes."""
  images = jax.typeof(x).sharding
  numbers = lax.conv_dimension_numbers(x.shape, kernel.shape, settings['dimension_numbers'])
  places = [None] * x.ndim
  places[numbers.out_spec[0]] = images.spec[numbers.lhs_spec[0]]
  form = functools.partial(
    lax.conv_general_dilated, window_strides=strides, padding=padding, **settings
  )
  out = NamedSharding(images.mesh, PartitionSpec(*places))
  return jax.sharding.auto_axes(form, out_sharding=out)(x, kernel)


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
) -> Sides:
  """What is added before and after each axis."""
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, window, strides, padding)
  return tuple((before, after) for before, after in padding)


def _grid(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides
) -> tuple[int, ...]:
  """(H', W')."""
  return tuple(
    (size + sum(side) - window) // stride + 1
    for size, side, window, stride in zip(
      x.shape[1:3], sides, kernel.shape[:2], strides, strict=True
    )
  )


def _images_at_a_time(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides
) -> int:
  """How many images are taken at a time, a divisor of B; 0 where all is left to lax.

  Here, in ``_value_by_products`` and in ``_kernel_form`` is all that was measured: the layers of
  the seed classifier and of ResNet-20 at batch 128, some of ResNet-50 and the first layers of
  ConvNeXt and ViT at batch 32, on two cores with AVX2 or AVX-512.
  """
  if jax.default_backend() != 'cpu' or jax.device_count() > 1:
    return 0  # a loop over images would gather the batch of all devices on each
  batch, width = x.shape[0], math.prod(kernel.shape[:3])
  positions = math.prod(_grid(x, kernel, strides, sides))
  if min(min(side) for side in sides) < 0:
    return 0
  if batch * positions * math.prod(kernel.shape) < _LEAST_PRODUCTS:
    return 0
  if _by_tiles(x, kernel, strides, sides):
    each = math.prod(tiles(_grid(x, kernel, strides, sides))) * 36 * sum(kernel.shape[2:])
    return _largest_part(batch, _TRANSFORMED // each)
  if _all_at_once(kernel, strides):
    return batch
  each = positions * (width + kernel.shape[-1])
  if each > _LARGEST * _PART:
    return 0
  images = _largest_part(batch, _PART // each)
  return images if images * positions >= _LEAST_POSITIONS else 0


def _all_at_once(kernel: jax.Array, strides: tuple[int, ...]) -> bool:
  """Whether the patches of all images are no more numbers than the padded images or the output."""
  if math.prod(kernel.shape[:2]) <= math.prod(strides):
    return True
  return math.prod(kernel.shape[:3]) <= kernel.shape[3]


def _largest_part(batch: int, most: int) -> int:
  """The largest divisor of the batch that is at most ``most``; one if there is none."""
  return max(n for n in range(1, batch + 1) if batch % n == 0 and (n == 1 or n <= most))


def _by_tiles(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides) -> bool:
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


def _plain(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides):
  numbers = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(x, kernel, strides, sides, dimension_numbers=numbers)


def _value_by_products(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides
) -> bool:
  """Whether the value and the gradient by x are faster as products too, not the kernel's alone."""
  features = kernel.shape[3]
  if _all_at_once(kernel, strides) or _by_tiles(x, kernel, strides, sides):
    return True
  each = math.prod(_grid(x, kernel, strides, sides)) * (math.prod(kernel.shape[:3]) + features)
  return features >= _LEAST_FEATURES and max(strides) == 1 and each <= _PART


def _products(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides):
  """By products where it is lowered for a CPU."""
  forms = (functools.partial(form, strides=strides, sides=sides) for form in (_by_products, _plain))
  return lax.platform_dependent(x, kernel, **dict(zip(('cpu', 'default'), forms, strict=True)))


def _value(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides):
  form = _products if _value_by_products(x, kernel, strides, sides) else _plain
  return form(x, kernel, strides, sides)


def _change_by_image(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides):
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


def _change_by_kernel(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides):
  """The same for the kernel: the transpose of ``sum_p patch_p^T g_p``, in the form that is fast."""
  form = _kernel_form(x, kernel, strides, sides)
  if form is None:
    return _products(x, kernel, strides, sides)
  size = _grid(x, kernel, strides, sides)
  y = jax.ShapeDtypeStruct((x.shape[0], *size, kernel.shape[3]), x.dtype)

  def by_lax(g: jax.Array) -> jax.Array:
    value = functools.partial(_plain, x, strides=strides, sides=sides)
    return jax.linear_transpose(value, kernel)(g)[0]

  def gradient(g: jax.Array) -> jax.Array:
    return lax.platform_dependent(g, cpu=functools.partial(form, x), default=by_lax)

  return jax.linear_transpose(gradient, y)(kernel)[0]


def _kernel_form(
  x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides
) -> Callable[[jax.Array, jax.Array], jax.Array] | None:
  """The gradient by the kernel as a function of (x, g); None where patches are as fast."""
  height, width, channels, features = kernel.shape
  window, size = (height, width), _grid(x, kernel, strides, sides)
  if _by_tiles(x, kernel, strides, sides) or are_side_by_side(window, strides, sides):
    return None
  if channels <= _FEW_CHANNELS:
    images = _largest_part(len(x), _TRANSFORMED // (math.prod(size) * math.prod(kernel.shape[:3])))
    return functools.partial(
      kernel_by_planes, window=window, strides=strides, sides=sides, images=images
    )
  copied = width * channels + height * features
  if max(strides) == 1 and copied < height * width * channels:
    images = _largest_part(len(x), _PART // (x.shape[1] * size[1] * copied))
    return functools.partial(kernel_by_rows, window=window, sides=sides, images=images)
  return None


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides):
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


def _by_products(x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], sides: Sides):
  """The convolution as matrix products, some images at a time, accumulated in float32."""
  batch, size = x.shape[0], _grid(x, kernel, strides, sides)
  images = _images_at_a_time(x, kernel, strides, sides)
  if _by_tiles(x, kernel, strides, sides):
    weights = transform_kernel(kernel)
    form = functools.partial(filter_images, sides=sides, size=size)
  else:
    weights = kernel.astype(jnp.float32)
    form = functools.partial(by_patches, strides=strides, sides=sides, size=size)

  # Otherwise the patches of all images would be made in the forward pass and kept.
  product = jax.checkpoint(form, prevent_cse=False)
  if images == batch:
    return product(x, weights).astype(x.dtype)
  parts = x.reshape(batch // images, images, *x.shape[1:])
  _, y = lax.scan(lambda _, part: (None, product(part, weights)), None, parts)
  return y.reshape(batch, *size, -1).astype(x.dtype)
