"""What lies where on a mesh with explicit axes, as ``jax.make_mesh`` makes it."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn import create_model
from jattn.layers import Dropout, DropPath
from jattn.ops import chunked_attend, convolve, for_each_image, max_pool, reshape

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


def test_numbers_and_gradients_are_those_of_no_mesh():
  keys = jax.random.split(jax.random.key(0), 3)
  shapes = ((2, 6, 4, 3), (3, 3, 3, 4), (4,))
  arrays = [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]

  def loss(x, kernel, token):
    y = convolve(x, kernel, (1, 1), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC'))
    y = reshape(max_pool(y), 2, 6, 1, 4)
    return jnp.sum(jnp.sin(jnp.concatenate([for_each_image(token[None, None], x), y], 1)))

  compute = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))
  want = compute(*arrays)
  mesh = jax.make_mesh((1,), ('data',), axis_types=(AxisType.Explicit,))
  placed = [
    jax.device_put(array, NamedSharding(mesh, P(*place)))
    for array, place in zip(arrays, (('data',), (), ()), strict=True)
  ]
  assert jax.typeof(placed[0]).sharding.spec[0] == 'data'
  for a, b in zip(jax.tree.leaves(compute(*placed)), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
  ('name', 'side'), [('seed_classifier', 32), ('cct_2_3x2_32', 32), ('vit_tiny_patch16_224', 224)]
)
def test_a_network_trains_on_images_on_a_mesh(name, side):
  model = create_model(name, num_classes=10)
  variables = jax.eval_shape(
    lambda key: model.init(key, jnp.zeros((1, side, side, 3)), train=False), jax.random.key(0)
  )

  def loss(variables, x):
    rngs = {'dropout': jax.random.key(0)}
    return jnp.sum(jnp.sin(model.apply(variables, x, train=True, rngs=rngs).logits))

  found = traced(jax.grad(loss, (0, 1)), variables, at((4, side, side, 3), 'data'))
  assert found[1].sharding.spec[0] == 'data'


def test_attention_by_blocks_keeps_numbers_and_places():
  """Of the results and of every gradient."""
  rng = np.random.default_rng(0)
  q, k, v = (
    jnp.asarray(rng.normal(size=(2, size, heads, width)), jnp.float32)
    for size, heads, width in ((7, 4, 3), (5, 2, 3), (5, 2, 2))
  )
  table = jnp.asarray(rng.normal(size=(4, 11)), jnp.float32)
  allowed = jnp.asarray(rng.random((2, 1, 7, 5)) < 0.7)

  def both(table, q, k, v, allowed):
    def bias(i, j):
      return table[:, i[:, None] - j[None, :] + 4]

    out, lse = chunked_attend(q, k, v, bias=bias, mask=allowed, block_size=(4, 2))
    return jnp.square(out).sum() + jnp.where(lse > -jnp.inf, lse, 0).sum(), (out, lse)

  step = jax.jit(jax.grad(both, (0, 1, 2, 3), has_aux=True))
  want = step(table, q, k, v, allowed)
  mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
  with jax.set_mesh(mesh):
    images = (jax.device_put(x, NamedSharding(mesh, P('data'))) for x in (q, k, v, allowed))
    found = step(table, *images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, want)
  (by_table, *by_images), results = found
  assert by_table.sharding.is_fully_replicated
  assert all(x.sharding.spec[0] == 'data' for x in (*by_images, *results))
