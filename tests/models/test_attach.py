"""Attention put into a trained network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import Classifier
from jattn.backbones import ResNetCifar
from jattn.models import Head
from jattn.pooling import Average
from tests.proof import initial

# Law 10 holds the identity of every mechanism's residual; here one of each kind goes in: with a
# gate, positions and their table, blocks, running statistics, and a residual of its own inside.
KEEPING = ['bottleneck', 'eca', 'halo', 'lambda', 'non_local', 'triplet']
# What the narrow network's 16 channels ask of a mechanism.
NEEDS = {'halo': {'block_size': 2, 'halo': 1}}


@pytest.fixture(scope='module')
def trained():
  """A network away from where it starts, images, and its logits."""
  model = Classifier(ResNetCifar(8, (8, 8, 16)), pool=Average(), head=Head(5))
  images = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
  variables = initial(model, images)
  move = np.random.default_rng(1)
  variables = jax.tree.map(lambda leaf: leaf + 0.1 * move.random(leaf.shape), variables)
  apply = jax.jit(lambda v, x: model.apply(v, x, train=False))
  return model, variables, images, apply(variables, images).logits


@pytest.mark.parametrize('name', KEEPING)
def test_logits_stay_as_they_are(trained, name):
  model, variables, images, logits = trained
  where = ('stage_2/block_0', 'stage_2', 'features')[KEEPING.index(name) % 3]
  part = {'name': name, **NEEDS.get(name, {})}
  wider, more = jattn.attach_attention(model, variables, part, where, image_size=16)
  prediction = jax.jit(lambda v, x: wider.apply(v, x, train=False))(more, images)
  np.testing.assert_allclose(prediction.logits, logits, rtol=0, atol=1e-6)
  added = jax.tree.structure(more) != jax.tree.structure(variables)
  assert added


def test_the_new_block_learns_and_shows_its_map(trained):
  model, variables, images, _ = trained
  assert model.attention == ()
  wider, more = jattn.attach_attention(model, variables, 'eca', 'stage_1', image_size=16)
  assert model.backbone.inserts == ()

  def loss(params):
    prediction = wider.apply({**more, 'params': params}, images, train=False)
    return jnp.square(prediction.logits).sum(), prediction.maps

  gradient, maps = jax.jit(jax.grad(loss, has_aux=True))(more['params'])
  assert np.abs(gradient['backbone']['insert_stage_1']['gamma']).max() > 0
  assert list(maps) == ['backbone/stage_1/inserted/gate']
  for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
    kept = more
    for entry in path:
      kept = kept[entry.key]
    np.testing.assert_array_equal(kept, leaf)


def test_the_key_decides_where_the_new_block_starts(trained):
  model, variables, *_ = trained

  def start(seed):
    key = jax.random.key(seed)
    more = jattn.attach_attention(model, variables, 'squeeze_excite', 'features', key=key)[1]
    return np.asarray(more['params']['attention_0']['mechanism']['reduce']['kernel'])

  np.testing.assert_array_equal(start(1), start(1))
  assert (start(1) != start(2)).any()


def test_tables_are_of_the_grid_of_the_images(trained):
  model, variables, *_ = trained
  more = jattn.attach_attention(model, variables, 'bottleneck', 'stage_1', image_size=32)[1]
  inserted = more['params']['backbone']['insert_stage_1']['mechanism']
  assert inserted['rows'].shape == (2 * 16 - 1, 2)


@pytest.mark.parametrize(
  ('mechanism', 'where', 'message'),
  [
    ('eca', 'stage_3', "nothing is called 'stage_3' in this backbone"),
    ('ecca', 'stage_1', "did you mean 'eca'"),
    ('token_learner', 'features', 'a residual needs a mechanism that keeps the shape'),
  ],
)
def test_what_cannot_be_is_named(trained, mechanism, where, message):
  model, variables, *_ = trained
  with pytest.raises(ValueError, match=message):
    jattn.attach_attention(model, variables, mechanism, where, image_size=16)


def test_variables_of_another_model_are_refused(trained):
  model, *_ = trained
  with pytest.raises(ValueError, match='it has no params/other'):
    jattn.attach_attention(model, {'params': {'other': jnp.ones(2)}}, 'eca', 'features')


def test_a_backbone_without_places_says_so():
  model = jattn.create_model('seed_classifier', num_classes=3)
  with pytest.raises(ValueError, match='ConvStack takes no inserted blocks'):
    jattn.attach_attention(model, {}, 'eca', 'stage_0')


def test_features_that_nobody_pools_take_no_block():
  model = jattn.create_model('vit_tiny_patch16_224', num_classes=3)
  with pytest.raises(ValueError, match="where='features': the vector of ViT is made before them"):
    jattn.attach_attention(model, {}, 'eca', 'features')
