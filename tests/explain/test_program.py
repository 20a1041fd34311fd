"""A traced function run again, with values inside read, moved and differentiated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.explain.program import trace


@jax.jit
def squared(x):
  return x * x


def nested(x):
  """The same compiled function twice, a checkpoint, a custom derivative, and a scan."""
  y = squared(squared(x) + 1)
  z = jax.checkpoint(lambda y: jnp.sin(squared(y)))(y)
  total, _ = jax.lax.scan(lambda c, row: (c + row, None), jnp.zeros(3), jnp.stack([z, y]))
  return jax.nn.relu(total - 1), y, z


def test_calls_are_written_out_and_values_stay():
  x = jnp.array([0.1, 0.5, -0.3])
  program, (number,), outputs = trace(nested, x)
  assert not {'jit', 'pjit', 'remat2', 'checkpoint'} & {s.primitive.name for s in program.steps}
  for got, want in zip(program.run({number: x}, outputs), nested(x), strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_the_derivative_by_a_value_inside():
  """y is used in a checkpoint and in a scan: both ways count."""
  x = jnp.array([0.1, 0.5, -0.3])
  program, (number,), (out, y, _) = trace(nested, x)

  def moved(move):
    edits = {y: functools.partial(jnp.add, move)}
    return program.run({number: x}, [out], edits=edits)[0].sum()

  def by_hand(y):
    return jax.nn.relu(jnp.sin(y * y) + y - 1).sum()

  at = nested(x)[1]
  np.testing.assert_allclose(jax.grad(moved)(jnp.zeros(3)), jax.grad(by_hand)(at), rtol=1e-5)


def test_a_custom_derivative_is_kept():
  """At zero jax.nn.relu has the derivative 0; the maximum in it would have 1/2."""
  program, (number,), y = trace(lambda x: jax.nn.relu(x), jnp.zeros(2))
  assert jax.grad(lambda x: program.run({number: x}, [y])[0].sum())(jnp.zeros(2)).tolist() == [0, 0]


def test_only_what_is_needed_is_run():
  program, _, (_, y, z) = trace(nested, jnp.ones(3))
  given = jnp.array([1.0, 2.0, 3.0])
  assert program.run({y: given}, [z])[0].tolist() == jnp.sin(given**2).tolist()
  with pytest.raises(KeyError):
    program.run({z: given}, [y])


def test_what_is_given_is_not_made_again_beside_another_result_of_the_same_step():
  def forward(x):
    y, z = jnp.split(x, 2)
    return y, y + 10 * z

  program, (x,), (y, total) = trace(forward, jnp.ones(2))
  assert program.run({x: jnp.array([1.0, 2.0]), y: jnp.array([5.0])}, [total])[0].tolist() == [25.0]


@pytest.mark.parametrize(
  ('rearrange', 'found'),
  [
    (lambda a: jnp.roll(a.reshape(2, 2, 3).swapaxes(0, 1), 1, axis=2)[:, :, :2], True),
    (lambda a: jnp.pad(a.astype(jnp.bfloat16), ((1, 0), (0, 0)))[:, jnp.array([2, 0])], True),
    (lambda a: jnp.concatenate([a[:1, ::-1], jnp.zeros((1, 3))]), True),
    (lambda a: 2 * a, False),
    (lambda a: a / a.sum(axis=-1, keepdims=True), False),
  ],
)
def test_the_source_of_a_rearranged_copy(rearrange, found):
  def forward(x):
    a = jax.nn.sigmoid(x)
    return (a @ jnp.ones((3, 1))).sum(), rearrange(a), a

  program, (x,), (logit, shown, a) = trace(forward, jnp.ones((4, 3)))
  used = program.reaching(logit) & program.reached_from([x])
  assert program.source(shown, used) == (a if found else None)
  assert program.source(a, used) == a


def test_a_copy_of_two_values_has_no_source():
  def forward(x):
    a, b = jnp.sin(x), jnp.cos(x)
    return (a * b).sum(), jnp.stack([a, b])

  program, _, (logit, shown) = trace(forward, jnp.ones(4))
  assert program.source(shown, program.reaching(logit)) is None
