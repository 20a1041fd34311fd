"""Layers in bfloat16: what is rounded, when, and in which type what is summed."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jattn.layers import LayerScale, batch_norm, conv, dense

POSITIONS = 1001  # bfloat16 has no such number


def made(kind, dtype=jnp.bfloat16):
  if kind == 'dense':
    layer = dense(3, inputs=16, name='layer', initialization='torch', dtype=dtype)
  else:
    layer = conv(3, (1, 1), inputs=16, name='layer', initialization='torch', dtype=dtype)
  x = jax.random.normal(jax.random.key(0), (1, 7, 143, 16))
  return layer, layer.init(jax.random.key(1), x), x


@pytest.mark.parametrize('kind', ['dense', 'conv'])
def test_the_gradient_by_a_bias_is_summed_in_float32(kind):
  layer, variables, x = made(kind)
  total = jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x), dtype=jnp.float32)))
  assert total(variables)['params']['bias'].tolist() == [POSITIONS] * 3


def test_the_gradient_by_a_layer_scale_is_summed_in_float32():
  x = jnp.ones((1, 7, 143, 3), jnp.bfloat16)
  layer, variables = LayerScale(), {'params': {'gamma': jnp.full(3, 0.5, jnp.float32)}}
  assert layer.apply(variables, x).dtype == jnp.bfloat16
  total = jax.jit(jax.grad(lambda v: jnp.sum(layer.apply(v, x), dtype=jnp.float32)))
  assert total(variables)['params']['gamma'].tolist() == [POSITIONS] * 3


def test_a_sum_of_products_and_its_bias_are_rounded_together():
  layer, variables, x = made('dense')
  kernel = variables['params']['kernel'].astype(jnp.bfloat16)
  sums = jnp.dot(x.astype(jnp.bfloat16), kernel, preferred_element_type=jnp.float32)
  want = (sums + variables['params']['bias'].reshape(1, 1, 1, 3)).astype(jnp.bfloat16)
  np.testing.assert_array_equal(layer.apply(variables, x), want)


@pytest.mark.parametrize('kind', ['dense', 'conv'])
def test_the_result_is_of_the_input_s_type_whatever_the_parameters_are(kind):
  """Linen's is of the wider of the two; of whole numbers, which no layer computes in, ours too."""
  layer, variables, x = made(kind, None)
  linen = nn.Dense(3) if kind == 'dense' else nn.Conv(3, (1, 1))
  narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), variables)
  for parameters in (variables, narrow):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
      assert jax.eval_shape(layer.apply, parameters, x.astype(dtype)).dtype == dtype
    found, want = (jax.eval_shape(m.apply, parameters, x.astype(int)) for m in (layer, linen))
    assert found.dtype == want.dtype


def test_off_the_cpu_they_are_linen_s(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  layer, variables, x = made('dense')
  found, want = (
    str(jax.make_jaxpr(jax.grad(lambda v, m=m: jnp.sum(m.apply(v, x))))(variables))
    for m in (layer, nn.Dense(3, dtype=jnp.bfloat16, name='layer', dot_general=lax.dot_general))
  )
  dots = [line for line in found.splitlines() if 'preferred_element_type' in line]
  assert dots == [line for line in want.splitlines() if 'preferred_element_type' in line]
  assert found.count('convert_element_type') == want.count('convert_element_type')


class _Layers(nn.Module):
  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    x = conv(3, (1, 1), inputs=16, name='conv')(x)
    return dense(3, inputs=3, name='dense')(batch_norm(train=True, name='norm')(x))


def test_what_a_layer_returns_is_captured_once():
  _, _, x = made('dense')
  settings = {'capture_intermediates': True, 'mutable': ['intermediates', 'batch_stats', 'params']}
  _, kept = _Layers().init_with_output(jax.random.key(0), x, **settings)
  for name in ('conv', 'dense', 'norm'):
    assert len(kept['intermediates'][name]['__call__']) == 1
