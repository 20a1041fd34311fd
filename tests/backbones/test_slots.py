"""Slots of a backbone: inserted blocks, rematerialised blocks, dropped paths, stages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import Residual, SqueezeExcite
from jattn.backbones import ResNetCifar
from jattn.layers import DropPath, activation
from tests.proof import initial

SETTINGS = {'depth': 8, 'widths': (4, 6, 8)}


@pytest.fixture(scope='module')
def images():
  return jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)


@pytest.fixture(scope='module')
def variables(images):
  return jax.jit(lambda: ResNetCifar(**SETTINGS).init(jax.random.key(0), images, train=False))()


def test_an_inserted_block_stands_after_its_place(images, variables):
  def make():
    return Residual(SqueezeExcite(reduction=2))

  module = ResNetCifar(**SETTINGS, inserts=(('stage_1/block_0', make), ('stage_2', make)))
  new = initial(module, images)
  added = set(new['params']) - set(variables['params'])
  assert added == {'insert_stage_1_block_0', 'insert_stage_2'}
  # With a gamma that is not zero what stands after the place moves, and nothing before it does.
  new['params']['insert_stage_1_block_0']['mechanism']['expand']['bias'] += 1.0
  new['params']['insert_stage_1_block_0']['gamma'] += 1.0
  params = new['params'] | variables['params']
  plain = ResNetCifar(**SETTINGS).apply(variables, images, train=False)
  got = module.apply({**variables, 'params': params}, images, train=False)
  assert set(got.maps) == {'stage_1/block_0/inserted/gate', 'stage_2/inserted/gate'}
  gate = got.maps['stage_1/block_0/inserted/gate'].weights
  np.testing.assert_array_equal(got.stages[0], plain.stages[0])
  np.testing.assert_allclose(got.stages[1], plain.stages[1] * (1 + gate), rtol=1e-5)
  assert [stage.shape for stage in got.stages] == [(2, 8, 8, 4), (2, 4, 4, 6), (2, 2, 2, 8)]
  np.testing.assert_array_equal(got.stages[-1], got.features)


@pytest.mark.parametrize(
  ('places', 'message'),
  [(['stage_3'], "nothing is called 'stage_3'"), (['stage_0'] * 2, 'holds an inserted block')],
)
def test_a_place_that_is_not_there_or_taken_is_named(images, places, message):
  inserts = tuple((place, SqueezeExcite) for place in places)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(
      lambda: ResNetCifar(**SETTINGS, inserts=inserts).init(jax.random.key(0), images, train=False)
    )


def test_rematerialised_blocks_give_the_same_gradient_and_statistics(images, variables):
  def grads(remat):
    module = ResNetCifar(**SETTINGS, remat=remat)

    def loss(params):
      given = {**variables, 'params': params}
      attended, new = module.apply(given, images, train=True, mutable=['batch_stats'])
      return jnp.square(attended.features).sum(), new

    made = jax.make_jaxpr(jax.grad(loss, has_aux=True))(variables['params'])
    return str(made), jax.jit(jax.grad(loss, has_aux=True))(variables['params'])

  (plain_program, plain), (program, again) = grads(False), grads(True)
  # A parameter of the operation, whose own name differs between versions of jax.
  assert 'prevent_cse' in program
  assert 'prevent_cse' not in plain_program
  for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_path_is_dropped_for_whole_images_and_the_others_scaled():
  x = jnp.ones((4000, 2, 3))
  y = DropPath(0.25).apply({}, x, train=True, rngs={'dropout': jax.random.key(0)})
  each = np.asarray(y).reshape(4000, -1)
  assert (each == each[:, :1]).all()
  assert set(np.unique(each)) == {0.0, np.float32(1 / 0.75)}
  assert abs(each.mean() - 1) < 4 * (0.25 / 0.75 / 4000) ** 0.5  # four standard errors
  np.testing.assert_array_equal(DropPath(0.25).apply({}, x, train=False), x)
  with pytest.raises(ValueError, match=r'self.rate=1 must be in \[0, 1\)'):
    DropPath(1).apply({}, x, train=True)


def test_gelu_is_the_exact_one():
  assert float(activation('gelu')(jnp.float32(1.0))) == pytest.approx(0.8413447, abs=1e-6)
  with pytest.raises(ValueError, match="did you mean 'gelu'"):
    activation('gleu')
