"""Every law over every row of the table in ``laws.py``."""

import dataclasses
import functools
import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn.attention import Residual
from jattn.types import Pooled
from tests.laws import MECHANISM_ROWS, NAMES, POOLING_ROWS, B, C, H, Row, W, check_kind
from tests.proof import initial, sums_in_half

ROWS = MECHANISM_ROWS + POOLING_ROWS
IDS = [f'{row.name}-{index}' for index, row in enumerate(ROWS)]
# Of a module's scope, so that the laws of a row follow one another and share its programs.
every_row = pytest.mark.parametrize('row', ROWS, ids=IDS, scope='module')


def draw(seed=0, shape=(B, H, W, C), dtype=jnp.float32):
  return jax.device_put(np.random.default_rng(seed).normal(size=shape).astype(dtype))


@functools.cache
def variables_of(index: int):
  """Parameters away from their initial values, where many gradients vanish by design."""
  variables = initial(ROWS[index].make(), draw())
  rng = np.random.default_rng(1)

  def move(path, leaf):
    noise = 0.3 * rng.normal(size=leaf.shape).astype(leaf.dtype)
    return jax.device_put(np.asarray(leaf) + (np.abs(noise) if path[-1].key == 'var' else noise))

  return jax.tree_util.tree_map_with_path(move, variables)


@functools.cache
def compiled(index: int, dtype=None):
  module = ROWS[index].make(**({} if dtype is None else {'dtype': dtype}))
  return jax.jit(lambda v, x: module.apply(v, x, train=False))


@functools.cache
def gradient(index: int):
  """(variables, x) -> the gradient, along a random direction, of the output by both; the output."""

  def along(variables, x):
    out = _output(compiled(index)(variables, x))
    return (out * draw(5, ROWS[index].shape)).sum(), out

  return jax.jit(jax.grad(along, (0, 1), has_aux=True))


def apply(row: Row, x, *, dtype=None, variables=None):
  index = ROWS.index(row)
  returned = compiled(index, dtype)(variables_of(index) if variables is None else variables, x)
  return _output(returned), returned.maps


@every_row
def test_0_no_count_is_below_one(row):
  """Of itself, and not as what a division by it does."""
  module = row.make()
  for field in dataclasses.fields(module):
    if field.type not in (int, int | None) or field.name in ('depth', 'extent', 'halo', 'shift'):
      continue
    for value in (0, -1):
      init = functools.partial(module.copy(**{field.name: value}).init, train=False)
      with pytest.raises(ValueError, match=f'self.{field.name}={value} must be'):
        jax.eval_shape(init, jax.random.key(0), draw())


def test_every_name_has_a_row():
  assert {row.name for row in ROWS} == NAMES


@every_row
def test_1_shape_and_dtype(row):
  out, _ = apply(row, draw())
  chex.assert_shape(out, row.shape)
  assert out.dtype == jnp.float32


@every_row
def test_1_all_is_of_32_bits_also_where_the_session_knows_64(row):
  module, x = row.make(), jax.ShapeDtypeStruct((B, H, W, C), jnp.float32)
  start = functools.partial(module.init_with_output, train=False)
  with jax.enable_x64(True):
    returned, variables = jax.eval_shape(start, jax.random.key(0), x)
  arrays = [_output(returned), *jax.tree.leaves((returned.maps, variables))]
  assert {array.dtype for array in arrays} <= {jnp.dtype('float32'), jnp.dtype('int32')}


@every_row
def test_1_a_batch_may_be_empty(row):
  images = jax.ShapeDtypeStruct((0, H, W, C), jnp.float32)
  found = jax.eval_shape(compiled(ROWS.index(row)), variables_of(ROWS.index(row)), images)
  assert _output(found).shape == (0, *row.shape[1:])


@every_row
def test_2_the_law_of_each_kind(row):
  _, maps = apply(row, draw())
  for attention_map in maps.values():
    check_kind(attention_map, (B, H, W, C))


@every_row
def test_3_neighbours_in_the_batch_do_not_matter(row):
  x = draw()
  out, maps = apply(row, x)
  other, other_maps = apply(row, np.stack([x[0], 100 * np.asarray(draw(7))[1]]))
  np.testing.assert_allclose(out[0], other[0], atol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a[0], b[0], atol=1e-6), maps, other_maps)


@every_row
@pytest.mark.parametrize('factor', [1, 1e3])
def test_4_bfloat16_features_float32_maps_all_finite(row, factor):
  x = (factor * np.asarray(draw())).astype(jnp.bfloat16)
  out, maps = apply(row, x, dtype=jnp.bfloat16)
  assert out.dtype == jnp.bfloat16
  assert np.isfinite(np.asarray(out, np.float32)).all()
  for attention_map in maps.values():
    check_kind(attention_map, (B, H, W, C))
    if factor == 1 and attention_map.weights.size > 1:
      weights = np.asarray(attention_map.weights)
      assert np.any(weights != weights.astype(jnp.bfloat16)), 'made in bfloat16'


@every_row
def test_4_the_input_s_type_stays_and_no_gradient_is_a_sum_in_bfloat16(row):
  """Where no type is asked for, features are of the input's."""
  index = ROWS.index(row)
  variables, x = variables_of(index), draw(dtype=jnp.bfloat16)

  def total(variables, x):
    out = _output(compiled(index)(variables, x))
    assert out.dtype == jnp.bfloat16
    return out.astype(jnp.float32).sum()

  assert sums_in_half(jax.grad(total, (0, 1)), variables, x) == []


@every_row
def test_5_jit_equals_eager_vmap_equals_a_loop_and_nothing_retraces(row):
  module, variables, x = row.make(), variables_of(ROWS.index(row)), draw()
  traced = compiled(ROWS.index(row))
  returned, programs = traced(variables, x), traced._cache_size()
  # Eager compiles every operation by itself, seconds a row: once for each name.
  if row is next(other for other in ROWS if other.name == row.name):
    chex.assert_trees_all_close(returned, module.apply(variables, x, train=False), atol=1e-5)
  chex.assert_trees_all_close(traced(variables, x), returned)
  stacked = np.stack([x, draw(3)])
  mapped = jax.jit(jax.vmap(lambda x: module.apply(variables, x, train=False)))(stacked)
  looped = jax.tree.map(lambda *xs: np.stack(xs), traced(variables, x), traced(variables, draw(3)))
  chex.assert_trees_all_close(mapped, looped, atol=1e-5)
  assert traced._cache_size() == programs


@every_row
def test_6_no_dead_parameter(row):
  index = ROWS.index(row)
  variables = variables_of(index)
  if not variables:
    return
  (moved, _), _ = gradient(index)(variables, draw())
  leaves = jax.tree_util.tree_leaves_with_path(moved['params'])
  largest = {'/'.join(part.key for part in path): np.abs(leaf).max() for path, leaf in leaves}
  assert np.isfinite(list(largest.values())).all()
  # What cancels in exact arithmetic leaves rounding, a few units in the last place of the largest.
  dead = {path for path, size in largest.items() if size < 3e-6 * max(largest.values())}
  assert dead == set(row.dead)


@every_row
def test_6_gradients_are_finite(row):
  """Also of features that are zero, or without variance and everywhere the largest, or saturate."""
  index = ROWS.index(row)
  for x in (0 * draw(), 0 * draw() + 3, 1e4 * draw()):
    for leaf in jax.tree.leaves(gradient(index)(variables_of(index), x)):
      assert np.isfinite(leaf).all()


@every_row
def test_7_any_grid(row):
  assert row.any_grid
  out, maps = apply(row, draw(shape=(B, H + 1, W + 2, C)))
  assert np.isfinite(out).all()
  for attention_map in maps.values():
    check_kind(attention_map, (B, H + 1, W + 2, C))


@pytest.mark.parametrize('row', [r for r in ROWS if r.rebuild], ids=lambda row: row.name)
def test_8_the_returned_map_rebuilds_the_output(row):
  out, maps = apply(row, draw())
  params = variables_of(ROWS.index(row))['params']
  np.testing.assert_allclose(row.rebuild(params, draw(), maps), out, atol=1e-5)


@pytest.mark.parametrize('row', [r for r in ROWS if r.pure_gate], ids=lambda row: row.name)
def test_8_a_pure_gate_multiplies_the_features(row):
  out, maps = apply(row, draw())
  product = np.asarray(draw(), np.float64)
  for attention_map in maps.values():
    assert attention_map.kind == 'gate'
    product = product * np.asarray(attention_map.weights)
  np.testing.assert_allclose(out, product, atol=1e-6)


RESIDUAL_ROWS = [r for r in MECHANISM_ROWS if r.shape == (B, H, W, C) and r.name != 'residual']


@pytest.mark.parametrize('row', RESIDUAL_ROWS, ids=lambda row: row.name)
def test_10_a_residual_around_it_starts_as_the_exact_identity(row):
  module = Residual(row.make())
  variables = initial(module, draw(4))
  started = jax.jit(lambda x: module.apply(variables, x, train=False).features)
  np.testing.assert_array_equal(started(draw(4)), draw(4))


@every_row
def test_9_reading_the_maps_changes_nothing(row):
  """The program of the gradient does not return them."""
  index = ROWS.index(row)
  _, without = gradient(index)(variables_of(index), draw())
  out, _ = apply(row, draw())
  np.testing.assert_allclose(without, out, atol=1e-6)


STARTS = ('flax', 'torch', 'paper')
STARTING_ROWS = [r for r in ROWS if hasattr(r.make(), 'initialization')]


@pytest.mark.parametrize('row', STARTING_ROWS, ids=lambda row: row.name)
def test_11_every_layer_starts_as_initialization_says(row):
  """Every number is possible, and their spread likely: the key is one for which all of them are."""
  for start in STARTS:
    variables = initial(row.make(initialization=start), draw(), key=5)
    for path, layer in _layers(variables.get('params', {})):
      if path not in row.starts_otherwise:
        kernel = np.asarray(layer['kernel'], np.float64)
        check_start(kernel, start, kernel.shape)
        check_start(np.asarray(layer.get('bias', []), np.float64), start, kernel.shape, bias=True)


def _layers(params, path=''):
  if 'kernel' in params:
    yield path, params
    return
  for name, inner in params.items():
    if isinstance(inner, dict):
      yield from _layers(inner, f'{path}/{name}'.strip('/'))


def check_start(leaf, start, kernel, *, bias=False):
  """``leaf`` is the kernel, or the bias beside it, of a layer whose kernel has shape ``kernel``."""
  fan_in, fan_out = np.prod(kernel[:-1]), np.prod(kernel[:-2]) * kernel[-1]
  if start == 'torch':
    largest, bound = np.abs(leaf).max(initial=0), fan_in**-0.5
    assert largest <= bound * (1 + 1e-6)
    assert largest >= bound * 1e-2 ** (1 / max(1, leaf.size)) or not leaf.size
  elif bias:
    assert not leaf.any()
  else:
    variance = 1 / fan_in if start == 'flax' else 2 / fan_out
    low, high = scipy.stats.chi2.ppf([1e-4, 1 - 1e-4], leaf.size)
    assert low < (leaf**2).sum() / variance < high


def test_rows_differ():
  """A copied row tests nothing new."""
  modules = [repr(row.make()) for row in ROWS]
  assert all(a != b for a, b in itertools.combinations(modules, 2))


def _output(returned):
  return returned.vector if isinstance(returned, Pooled) else returned.features


@every_row
def test_a_batch_may_lie_on_a_mesh_with_explicit_axes(row):
  """As ``jax.make_mesh`` makes it: every result of an image is where the image is."""
  index = ROWS.index(row)
  like = functools.partial(jax.tree.map, lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype))
  variables = like(variables_of(index))
  mesh = AbstractMesh((2,), ('data',), axis_types=(AxisType.Explicit,))
  x = jax.ShapeDtypeStruct((B, H, W, C), jnp.float32, sharding=NamedSharding(mesh, P('data')))
  with jax.sharding.use_abstract_mesh(mesh):
    found = jax.eval_shape(compiled(index), variables, x)
    (by_variables, by_x), _ = jax.eval_shape(gradient(index), variables, x)
  weights = [m.weights for m in found.maps.values() if m.weights.shape[0] == B]
  for array in (_output(found), by_x, *weights):
    assert array.sharding.spec[0] == 'data', array
  assert all(a.sharding is None or not any(a.sharding.spec) for a in jax.tree.leaves(by_variables))
