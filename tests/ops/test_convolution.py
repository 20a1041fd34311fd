"""The convolution by matrix products, forward and backward, against lax's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jattn.ops import convolution, convolve

NUMBERS = ('NHWC', 'HWIO', 'NHWC')
# Batch, height, width, channels, kernel, features, strides, padding.
CASES = {
  'stem': ((4, 9, 7, 3), (3, 3), 5, (1, 1), [(1, 1), (1, 1)]),
  'strided': ((3, 9, 8, 3), (3, 2), 4, (2, 2), [(0, 2), (1, 0)]),
  'planes': ((12, 19, 16, 2), (3, 2), 4, (2, 2), [(0, 2), (1, 0)]),
  'wide': ((3, 7, 6, 2), (2, 2), 9, (1, 2), [(0, 2), (1, 0)]),
  'beside': ((3, 7, 10, 2), (2, 3), 4, (2, 3), 'VALID'),
  'pointwise': ((2, 5, 6, 4), (1, 1), 3, (2, 2), 'VALID'),
  'projection': ((3, 5, 4, 6), (1, 1), 2, (1, 1), [(1, 0), (0, 0)]),
  'tiles': ((4, 9, 7, 4), (3, 3), 5, (1, 1), [(2, 0), (1, 3)]),
  'turned': ((4, 9, 7, 4), (3, 3), 5, (1, 1), [(2, 0), (1, 1)]),
  'rows': ((4, 9, 7, 3), (3, 2), 3, (1, 1), [(2, 0), (0, 3)]),
  'same': ((1, 6, 5, 2), (5, 3), 2, (1, 2), 'SAME'),
}


@pytest.fixture(autouse=True)
def _one_device_and_small_is_large_enough(monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: 1)
  monkeypatch.setattr(convolution, '_LEAST_PRODUCTS', 0)
  monkeypatch.setattr(convolution, '_LEAST_POSITIONS', 1)
  monkeypatch.setattr(convolution, '_LEAST_FEATURES', 1)
  monkeypatch.setattr(convolution, '_PART', 2500)  # several parts of the batch
  monkeypatch.setattr(convolution, '_FEW_CHANNELS', 2)  # of 'planes' and 'same'
  monkeypatch.setattr(convolution, '_LEAST_CHANNELS', 4)  # 'tiles' and 'turned' have as many
  monkeypatch.setattr(convolution, '_TRANSFORMED', 6000)
  monkeypatch.setattr(convolution, '_MOST_PRODUCTS', 1)


def made(name, dtype=jnp.float32):
  shape, window, features, strides, padding = CASES[name]
  keys = jax.random.split(jax.random.key(0), 2)
  x = jax.random.normal(keys[0], shape, dtype)
  kernel = jax.random.normal(keys[1], (*window, shape[-1], features), dtype)
  settings = {'window_strides': strides, 'padding': padding, 'dimension_numbers': NUMBERS}
  return x, kernel, settings


def gradients(function, x, kernel, settings):
  y, pull = jax.vjp(functools.partial(function, **settings), x, kernel)
  return y, *pull(jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape).astype(y.dtype))


@pytest.mark.parametrize(('name', 'compiled'), [('stem', False), *((n, True) for n in CASES)])
def test_values_and_gradients_are_those_of_lax(name, compiled):
  x, kernel, settings = made(name)
  found, want = (
    (jax.jit(f) if compiled else f)(x, kernel)
    for f in (
      functools.partial(gradients, function, settings=settings)
      for function in (convolve, lax.conv_general_dilated)
    )
  )
  for a, b in zip(found, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('name', 'features', 'left'),
  # The value, the gradient by the kernel and the gradient by x; strided, lax's are the faster.
  [
    ('stem', 1, 0),
    ('stem', 6, 2),
    ('projection', 6, 0),
    ('strided', 1, 2),
    ('planes', 1, 2),
    ('wide', 10, 0),
    ('beside', 10, 0),
    ('tiles', 1, 0),
    ('tiles', 6, 0),
    ('turned', 6, 0),
  ],
)
def test_what_is_faster_as_matrix_products_is_made_of_them(name, features, left, monkeypatch):
  monkeypatch.setattr(convolution, '_LEAST_FEATURES', features)
  x, kernel, settings = made(name)

  def convolutions(function):
    text = jax.jit(functools.partial(gradients, function, settings=settings)).lower(x, kernel)
    return text.as_text().count('stablehlo.convolution'), text.as_text().count('dot_general')

  assert convolutions(lax.conv_general_dilated) == (3, 0)
  found = convolutions(convolve)
  assert found[0] == left
  assert found[1] >= 3 - left


@pytest.mark.parametrize('name', ['turned', 'tiles'])
def test_by_x_it_is_a_convolution_with_the_kernel_turned_around_if_no_side_is_cropped(name):
  x, kernel, settings = made(name)
  by_x = jax.grad(lambda x: jnp.sum(convolve(x, kernel, **settings) ** 2))
  assert ('reverse' in jax.jit(by_x).lower(x).as_text()) == (name == 'turned')


def test_windows_side_by_side_are_not_copied_together_piece_by_piece():
  x, kernel, settings = made('beside')
  found = jax.jit(functools.partial(gradients, convolve, settings=settings)).lower(x, kernel)
  assert 'concatenate' not in found.as_text()


@pytest.mark.parametrize(('name', 'expected'), [('planes', True), ('strided', False)])
def test_by_the_kernel_it_is_a_product_of_planes_where_an_image_has_few_channels(name, expected):
  x, kernel, settings = made(name)
  by_kernel = jax.grad(lambda kernel: jnp.sum(convolve(x, kernel, **settings) ** 2))
  found = jax.jit(by_kernel).lower(kernel).as_text()
  assert ('dims = [0, 4, 1, 2, 3]' in found) == expected


@pytest.mark.parametrize('name', CASES)
def test_no_patches_are_kept_for_the_backward_pass(name):
  x, kernel, settings = made(name)
  _, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, **settings), x, kernel)
  # The kernel transformed, 36 numbers for 9, is all that may come on top.
  assert sum(leaf.size for leaf in jax.tree.leaves(pull)) <= x.size + 5 * kernel.size


@pytest.mark.parametrize(('features', 'by_rows'), [(5, True), (6, False)])
def test_by_the_kernel_it_is_a_product_of_rows_if_that_copies_less(features, by_rows):
  x, _, settings = made('stem')
  kernel = jnp.ones((3, 3, 3, features))
  by_kernel = jax.grad(lambda kernel: jnp.sum(convolve(x, kernel, **settings) ** 2))
  found = jax.jit(by_kernel).lower(kernel).as_text()
  assert (f'-> tensor<9x{3 * features}xf32>' in found) == by_rows


@pytest.mark.parametrize('name', ['stem', 'strided', 'planes', 'wide', 'tiles'])
def test_bfloat16_is_rounded_once(name):
  x, kernel, settings = made(name, jnp.bfloat16)
  _, _, ours = gradients(convolve, x, kernel, settings)
  assert ours.dtype == jnp.bfloat16
  wide = [a.astype(jnp.float32) for a in (x, kernel)]
  _, _, want = gradients(lax.conv_general_dilated, *wide, settings)
  np.testing.assert_allclose(
    ours.astype(jnp.float32), want, rtol=2**-7, atol=2**-7 * float(jnp.abs(want).max())
  )


@pytest.mark.parametrize('name', ['stem', 'same', 'wide', 'beside', 'tiles', 'turned'])
def test_forward_mode_second_derivatives_and_vmap(name):
  x, kernel, settings = made(name)

  def loss(function, kernel):
    return jnp.sum(jnp.sin(function(x, kernel, **settings)))

  @functools.partial(jax.jit, static_argnums=0)
  def turned(function, kernel):
    along = jnp.ones_like(kernel)
    hessian = jax.jvp(jax.grad(functools.partial(loss, function)), (kernel,), (along,))[1]
    both = jnp.stack([kernel, 2 * kernel])
    change = jax.jvp(lambda x: function(x, kernel, **settings), (x,), (jnp.sin(x),))[1]
    return change, hessian, jax.vmap(jax.grad(functools.partial(loss, function)))(both)

  for a, b in zip(*(turned(f, kernel) for f in (convolve, lax.conv_general_dilated)), strict=True):
    # Sums of terms as large as the largest, and Winograd's rounding in the cosine besides.
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
  'more', [{'feature_group_count': 2}, {'rhs_dilation': (2, 2)}, {'lhs_dilation': (2, 1)}]
)
def test_what_is_not_plain_is_left_to_lax(more):
  x, kernel, settings = made('planes')
  kernel = kernel[:, :, : 2 // more.get('feature_group_count', 1)]
  found, want = (
    gradients(f, x, kernel, settings | more) for f in (convolve, lax.conv_general_dilated)
  )
  for a, b in zip(found, want, strict=True):
    np.testing.assert_array_equal(a, b)


def test_lowered_for_another_platform_it_is_lax_s():
  x, kernel, settings = made('stem')
  gradient = jax.jit(jax.grad(lambda kernel: jnp.sum(convolve(x, kernel, **settings) ** 2)))
  for platform in ('cuda', 'tpu'):
    text = gradient.trace(kernel).lower(lowering_platforms=(platform,)).as_text()
    assert 'stablehlo.dot_general' not in text
    assert 'stablehlo.convolution' in text


@pytest.mark.parametrize('devices', [1, 8])
def test_several_devices_are_left_to_lax(devices, monkeypatch):
  monkeypatch.setattr(jax, 'device_count', lambda: devices)
  x, kernel, settings = made('stem')
  traced = jax.make_jaxpr(functools.partial(convolve, **settings))(x, kernel)
  assert ('custom_jvp_call' in str(traced)) == (devices == 1)
