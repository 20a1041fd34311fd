"""Multiply-accumulates against products that are counted by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn.cost import cost, multiply_accumulates


def count(module, shape):
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x), x)
  return multiply_accumulates(module.apply, variables, x)


@pytest.mark.parametrize(
  ('module', 'expected'),
  [
    (nn.Dense(11), 2 * 7 * 5 * 12 * 11),
    (nn.Conv(8, (3, 3)), 2 * 7 * 5 * 8 * 9 * 12),
    (nn.Conv(8, (3, 3), strides=2, feature_group_count=4), 2 * 4 * 3 * 8 * 9 * 3),
    (nn.Conv(12, (5, 1), feature_group_count=12), 2 * 7 * 5 * 12 * 5),
  ],
)
def test_layers(module, expected):
  assert count(module, (2, 7, 5, 12)) == expected


def test_loops_calls_and_branches():
  x = jnp.zeros((4, 4))
  product = 4**3

  def loop(x):
    return jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=5)[0]

  assert multiply_accumulates(loop, x) == 5 * product
  assert multiply_accumulates(jax.jit(jax.checkpoint(lambda x: x @ x)), x) == product
  assert multiply_accumulates(lambda x: x + x, x) == 0
  branches = (lambda x: x @ x, lambda x: x @ x @ x)
  assert multiply_accumulates(lambda x: jax.lax.cond(True, *branches, x), x) == 2 * product
  with pytest.raises(ValueError, match='while'):
    multiply_accumulates(lambda x: jax.lax.while_loop(lambda c: True, lambda c: c @ c, x), x)


def test_what_nobody_reads_costs_nothing():
  x = jnp.zeros((4, 4))

  def function(x, keep):
    product = jnp.einsum('ij,jk->ik', x, x)
    return (x, product @ x) if keep else (x + 1, None)

  assert multiply_accumulates(lambda x: function(x, True)[0], x) == 0
  assert multiply_accumulates(lambda x: function(x, True)[1], x) == 2 * 4**3


def test_what_nobody_reads_of_a_call_costs_nothing():
  x, one = jnp.zeros((4, 4)), 4**3

  def two(x, y):
    return x @ x, y @ y @ y

  for call in (jax.jit(two), jax.checkpoint(two), lambda x, y: jax.lax.cond(True, two, two, x, y)):
    assert multiply_accumulates(lambda x, call=call: call(x, x @ x)[0], x) == one
    assert multiply_accumulates(lambda x, call=call: call(x, x @ x)[1], x) == 3 * one

  def turn(carry, row):  # of three: the second is read by the first's next turn alone
    a, b, c = carry
    return (a + b, b @ b, c @ x @ x), row @ x

  def loop(x):
    return jax.lax.scan(turn, (x, x, x), jnp.zeros((5, 4, 4)))

  counts = [multiply_accumulates(lambda x, i=i: loop(x)[0][i], x) for i in range(3)]
  assert counts == [5 * one, 5 * one, 10 * one]
  assert multiply_accumulates(lambda x: loop(x)[1], x) == 5 * one


def test_products_in_groups():
  """A row meets the matrix of its group alone."""
  sizes = jnp.array([1, 3])
  count = multiply_accumulates(jax.lax.ragged_dot, jnp.zeros((4, 6)), jnp.zeros((2, 6, 8)), sizes)
  assert count == 4 * 6 * 8


def test_resnet20_counted_layer_by_layer():
  model = jattn.create_model('resnet20', num_classes=10)
  x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), x)
  macs = multiply_accumulates(lambda v, x: model.apply(v, x, train=False).logits, variables, x)
  by_hand = 9 * 32 * 32 * 3 * 16 + 6 * 9 * 32 * 32 * 16 * 16
  for side, width in ((16, 32), (8, 64)):
    by_hand += 9 * side * side * width * (width // 2) + 5 * 9 * side * side * width * width
  assert macs == by_hand + 64 * 10


@pytest.mark.parametrize('stride', [1, 2, 3])
def test_the_gradient_of_a_strided_convolution_counts_no_zeros_between_pixels(stride):
  x, kernel = jnp.zeros((2, 12, 12, 5)), jnp.zeros((3, 3, 5, 7))

  def convolution(x):
    numbers = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
      x, kernel, (stride, stride), 'VALID', dimension_numbers=numbers
    )

  forward = multiply_accumulates(convolution, x)
  y, pull = jax.vjp(convolution, x)
  assert forward == y.size * 9 * 5
  # Every pixel of y meets every tap once; beyond that only padding may be met.
  assert forward <= multiply_accumulates(pull, y) <= 2 * forward


def test_attention_costs_its_two_products():
  q, v = jnp.zeros((2, 49, 3, 8)), jnp.zeros((2, 49, 3, 16))
  found = cost(lambda q, v: jattn.ops.attend(q, q, v), q, v)
  assert found.multiply_accumulates == 2 * 3 * 49 * 49 * (8 + 16)
  assert found.peak_bytes >= found.temporary_bytes + 4 * (q.size + 2 * v.size)


def test_a_loop_that_xla_counts_once_is_noted():
  x = jnp.zeros((64, 64))
  assert cost(lambda x: x @ x, x).note == ''

  def loop(x):
    return jax.lax.scan(lambda c, _: (c @ x, None), x, None, length=500)[0]

  found = cost(loop, x)
  assert found.multiply_accumulates == 500 * 64**3
  assert "XLA's cost_analysis has" in found.note
