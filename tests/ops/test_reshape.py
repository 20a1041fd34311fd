"""Reshaping on a mesh with explicit axes, traced without devices, against what lies where."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn.layers import Dropout, DropPath
from jattn.ops import for_each_image, reshape

MESH = AbstractMesh((2, 2), ('data', 'model'), axis_types=(AxisType.Explicit,) * 2)


def traced(function, *shaped):
  with jax.sharding.use_abstract_mesh(MESH):
    return jax.eval_shape(function, *shaped)


def at(shape, *places):
  return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(MESH, P(*places)))


@pytest.mark.parametrize(
  ('shape', 'places', 'sizes', 'want'),
  [
    ((4, 3, 5, 12), ('data',), (4, 15, 1, 12), ('data', None, None, None)),
    ((4, 6, 8, 3), ('data',), (12, 2, 4, -1, 3), ('data', None, None, None, None)),
    ((4, 1, 1, 12), ('data',), (4, 1, 2, 6), ('data', None, None, None)),
    ((4, 1), ('data',), (1, 4), (None, 'data')),
    ((4, 3, 5, 12), ('data', None, None, 'model'), (4, 15, 2, 6), ('data', None, 'model', None)),
    ((8, 3, 2), (('data', 'model'),), (8, 1, 6), (('data', 'model'), None, None)),
    ((4, 3, 2), (), (2, 2, 6), (None, None, None)),
  ],
)
def test_axes_keep_their_place(shape, places, sizes, want):
  found = traced(lambda x: reshape(x, *sizes), at(shape, *places))
  spec = tuple(found.sharding.spec) if found.sharding else ()
  assert spec + (None,) * (len(want) - len(spec)) == want
  numbers = np.arange(math.prod(shape)).reshape(shape)
  np.testing.assert_array_equal(reshape(jnp.asarray(numbers), *sizes), numbers.reshape(sizes))


def test_an_axis_inside_those_it_is_merged_with_is_refused():
  with pytest.raises(Exception, match='This reshape is not supported'):
    traced(lambda x: reshape(x, 4, 12, 12), at((4, 3, 4, 12), 'data', None, 'model'))


def test_tokens_are_where_the_images_are():
  found = traced(for_each_image, at((1, 12)), at((4, 5, 12), 'data'))
  assert found.shape == (4, 1, 12)
  assert found.sharding.spec[0] == 'data'


@pytest.mark.parametrize('layer', [Dropout(0.5, deterministic=False), DropPath(0.5)])
def test_what_is_dropped_is_drawn_for_images_on_a_mesh(layer):
  settings = {'train': True} if isinstance(layer, DropPath) else {}

  def drop(key, x):
    return layer.apply({}, x, rngs={'dropout': key}, **settings)

  key = jax.random.key(0)
  found = traced(lambda x: drop(key, x), at((4, 6, 2), 'data'))
  assert found.sharding.spec[0] == 'data'
  assert set(np.unique(drop(key, jnp.ones((16, 6, 2))))) == {0, 2}
