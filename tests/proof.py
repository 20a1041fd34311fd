"""How a module is held against its oracle: values in two precisions, then the gradient."""

import functools
from collections.abc import Callable

import flax.traverse_util
import jax
import jax.extend
import jax.numpy as jnp
import numpy as np

from jattn.types import Pooled

SHAPE = (2, 3, 5, 12)


def draw(shape=SHAPE, seed=0, dtype=jnp.float32):
  """Features of half a unit: sums of a few hundred products stay near one."""
  return jax.device_put((0.5 * np.random.default_rng(seed).normal(size=shape)).astype(dtype))


def variables_of(module, x, *, seed=1, scale=0.3):
  """Variables away from where they start, in the type of ``x``; variances stay positive."""
  numbers = _numbers(module, x, seed=seed, scale=scale)
  return jax.tree.map(lambda leaf: jax.device_put(leaf.astype(x.dtype)), numbers)


def _numbers(module, x, *, seed=1, scale=0.3):
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
  rng = np.random.default_rng(seed)

  def move(path, leaf):
    value = scale * rng.normal(size=leaf.shape)
    if path[-1].key == 'scale':
      value = 1 + value
    if path[-1].key == 'var':
      value = 0.5 + np.abs(value)
    return np.asarray(value)

  return jax.tree_util.tree_map_with_path(move, variables)


def initial(module, x, *, key=0):
  """``module.init`` without the forward pass, one operation after another.

  As one program it would be compiled for every module anew, and random numbers take long to
  compile; operation by operation, what differs in nothing but the module is compiled once.
  """
  init = functools.partial(module.init, train=False)
  program, shapes = jax.make_jaxpr(init, return_shape=True)(jax.random.key(key), x)
  read, kept = set(program.jaxpr.outvars), []
  for step in reversed(program.eqns):
    if not read.isdisjoint(step.outvars):
      kept.insert(0, step)
      read.update(a for a in step.invars if isinstance(a, jax.extend.core.Var))
  made = jax.extend.core.ClosedJaxpr(program.jaxpr.replace(eqns=kept), program.consts)
  leaves = jax.extend.core.jaxpr_as_fun(made)(jax.random.key(key), x)
  return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def flat(variables) -> dict[str, np.ndarray]:
  """'reduce/kernel' -> float64 array, batch statistics ('norm/mean') among the parameters."""
  out = {}
  for path, leaf in flax.traverse_util.flatten_dict(dict(variables), sep='/').items():
    out[path.split('/', 1)[1]] = np.asarray(leaf, np.float64)
  return out


def output(returned):
  return returned.vector if isinstance(returned, Pooled) else returned.features


def prove(
  module,
  oracle: Callable,
  *,
  shape=SHAPE,
  train: bool = False,
  maps: bool = True,
  scale: float = 0.3,
) -> None:
  """``oracle(p, x, train)`` -> output, or (output, {name: weights}); ``p`` as ``flat`` gives it.

  Output (and maps) agree to 1e-6 in float32 and to 1e-12 in float64, relative to the largest number
  where that is above one; the gradient along a random direction of parameters and input agrees with
  a central difference to 1e-6.
  """

  def apply(variables, x):
    if train and 'batch_stats' in variables:
      return module.apply(variables, x, train=True, mutable=['batch_stats'])[0]
    return module.apply(variables, x, train=train)

  def check(returned, variables, x, tolerance):
    assert output(returned).dtype == x.dtype
    want = oracle(flat(variables), np.asarray(x, np.float64), train)
    want, want_maps = want if isinstance(want, tuple) else (want, {})
    _close(output(returned), want, tolerance)
    if maps:
      assert set(returned.maps) == set(want_maps)
    for name, weights in want_maps.items():
      _close(returned.maps[name].weights, weights, tolerance)
    return want.shape

  numbers, x = _numbers(module, draw(shape), scale=scale), draw(shape)
  variables = jax.tree.map(lambda leaf: leaf.astype(x.dtype), numbers)
  made = check(jax.jit(apply)(variables, x), variables, x, 1e-6)
  with jax.enable_x64(True):
    x = draw(shape, dtype=jnp.float64)
    # The values come out of the program of the gradient: one to compile, not two.
    check(check_gradient(apply, numbers, x, shape=made), numbers, x, 1e-12)


def check_gradient(apply, variables, x, *, shape, step=1e-5):
  """The gradient of ``apply`` in x64 against a central difference, along one random direction.

  ``shape`` is of the output. Returns what ``apply`` does.
  """
  rng = np.random.default_rng(2)
  constants = {k: v for k, v in variables.items() if k != 'params'}
  probe = rng.normal(size=shape)

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def loss(point):
    params, x = point
    returned = apply({'params': params, **constants}, x)
    return (output(returned) * probe).sum(), returned

  # In NumPy all but the loss: every operation of its own is one more program to compile.
  point = jax.tree.map(np.asarray, (dict(variables).get('params', {}), x))
  direction = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape), point)
  moved = [jax.tree.map(lambda a, d, s=s: a + s * d, point, direction) for s in (step, -step)]
  difference = (loss(moved[0])[0][0] - loss(moved[1])[0][0]) / (2 * step)
  (_, returned), gradient = loss(point)
  products = jax.tree.map(lambda g, d: (np.asarray(g) * d).sum(), gradient, direction)
  slope = sum(jax.tree.leaves(products))
  np.testing.assert_allclose(slope, difference, rtol=1e-6, atol=1e-8)
  return returned


def sums_in_half(fn, *args) -> list[tuple[int, tuple[int, ...]]]:
  """How many numbers of 16 bits the program of ``fn`` adds up to one, and the shape they are in.

  On CPU each partial sum of such is rounded: 256 ones and one more are 256. Products of matrices
  are not among them: those are summed in float32.
  """
  found = []
  for step in _steps(jax.make_jaxpr(fn)(*args).jaxpr):
    if step.primitive.name in ('reduce_sum', 'cumsum'):
      before, after = step.invars[0].aval, step.outvars[0].aval
      count = before.size if step.primitive.name != 'reduce_sum' else before.size // after.size
      if before.dtype.itemsize == 2 and count > 1:
        found.append((count, before.shape))
  return found


def _steps(jaxpr):
  for step in jaxpr.eqns:
    yield step
    for inner in jax.extend.core.jaxprs_in_params(step.params):
      yield from _steps(inner)


def _close(got, want, tolerance):
  assert got.shape == want.shape, (got.shape, want.shape)
  np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1, np.abs(want).max()))
