"""Scores of images and maps on a mesh with explicit axes, as ``jax.make_mesh`` makes it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn import explain
from tests.explain.networks import Linear, convolutional, moved, pictures

KEY = jax.random.key(3)
MODEL, VARIABLES, IMAGES = convolutional()
MAPS = pictures(*IMAGES.shape[:3], seed=2)
MASKS = pictures(*IMAGES.shape[:3], seed=3) > 0.6
TARGETS = jnp.array([2, 0], jnp.int32)

# Of (images, maps, masks, targets).
SCORES = {
  **{
    name: lambda x, maps, masks, targets, score=score: score(maps, masks)
    for name, score in explain.LOCALISATION.items()
  },
  'attention_by_head': lambda x, *_: explain.attention_by_head(MODEL, VARIABLES, x),
  'attention_faithfulness': lambda x, *_: explain.attention_faithfulness(MODEL, VARIABLES, x),
  'class_sensitivity': lambda x, maps, masks, targets: explain.class_sensitivity(
    'hires_cam', MODEL, VARIABLES, x, targets
  ),
  'covering_drops': lambda x, *_: explain.covering_drops(MODEL, VARIABLES, x, cells=(2, 3)),
  'faithfulness': lambda x, maps, *_: explain.faithfulness(maps, maps[:, ::4, ::4]),
  'impute': lambda x, maps, masks, targets: explain.impute(x, masks, steps=1),
  'parameter_randomisation': lambda x, *_: explain.parameter_randomisation(
    KEY, 'hires_cam', MODEL, VARIABLES, x
  ),
  'removal_ranks': lambda x, maps, *_: explain.removal_ranks(KEY, maps),
  'road': lambda x, maps, masks, targets: explain.road(
    MODEL, VARIABLES, x, maps, targets, key=KEY, fractions=np.array([0.5])
  ),
}


@pytest.mark.parametrize('name', sorted(SCORES))
def test_images_may_lie_on_a_mesh(name):
  mesh = AbstractMesh((2,), ('data',), axis_types=(AxisType.Explicit,))
  placed = NamedSharding(mesh, P('data'))
  given = (IMAGES, MAPS, MASKS, TARGETS)
  shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=placed) for a in given]
  with jax.sharding.use_abstract_mesh(mesh):
    found = jax.eval_shape(SCORES[name], *shapes)
  values = [score.value if isinstance(score, explain.Score) else score for score in _each(found)]
  assert values
  for value in values:
    assert value.sharding.spec[0] == 'data'


def _each(found):
  return jax.tree.leaves(found, is_leaf=lambda x: isinstance(x, explain.Score))


def test_numbers_are_those_of_no_mesh():
  model, images = Linear(), pictures(2, 5, 7, 3)
  variables, maps = moved(model, images, scale=2.0), pictures(2, 5, 7)

  def scores(images, maps):
    curves = explain.deletion_and_insertion(model, variables, images, maps, key=KEY, steps=3)
    return curves, curves.scores(), explain.bootstrap_interval(KEY, maps[:, 0, 0], samples=9)

  want = scores(images, maps)
  mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
  with jax.set_mesh(mesh):
    found = scores(*(jax.device_put(x, NamedSharding(mesh, P('data'))) for x in (images, maps)))
  assert found[0].deletion.sharding.spec[0] == 'data'
  for got, wanted in zip(*map(jax.tree.leaves, (found, want)), strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)
