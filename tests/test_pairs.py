"""Every mechanism with every pooling: each pair initialises and can be trained."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jattn
from jattn import Batch, Classifier, training
from jattn.backbones import ConvStack
from jattn.models import Head
from tests.proof import initial

MECHANISMS, POOLINGS = jattn.list_attentions(), jattn.list_poolings()
# They make another shape of the features, so they stand behind a backbone and not in a block.
RESHAPING = {'token_learner'}
CLASSES = 3


def classifier(attentions, pool):
  return Classifier(
    backbone=ConvStack((16,)),
    attention=tuple(map(jattn.create_attention, attentions)),
    pool=jattn.create_pooling(pool),
    head=Head(CLASSES),
  )


def train(model, images, started):
  """State after one update, and before."""
  update = training.make_update(
    model.apply, optax.sgd(0.1), num_classes=CLASSES, prepare=lambda images: images
  )
  state = training.create_state(
    lambda key: started,
    optax.sgd(0.1),
    seed=0,
    mesh=training.make_mesh(devices=jax.devices()[:1]),
  )
  labels = jnp.arange(len(images)) % CLASSES
  batch = Batch(images, labels, jnp.ones(len(images), bool))
  return *update(state, batch), state


@functools.cache
def behind(pool, shape):
  """A step of a pooling and a head on features of this shape, as mechanisms make them."""
  features = jax.ShapeDtypeStruct(shape, jnp.float32)

  def step(features):
    module, head = jattn.create_pooling(pool), Head(CLASSES)
    pooled, variables = module.init_with_output(jax.random.key(0), features, train=False)
    logits, _ = head.init_with_output(jax.random.key(0), pooled.vector, train=False)

    def loss(params, features):
      given = {**variables, 'params': params}
      return module.apply(given, features, train=True).vector.sum()

    gradients = jax.grad(loss, argnums=(0, 1))(variables.get('params', {}), features)
    return logits, gradients

  logits, (_, gradient) = jax.eval_shape(step, features)
  assert logits.shape == (shape[0], CLASSES)
  assert gradient.shape == shape


@pytest.mark.parametrize('attention', MECHANISMS)
def test_every_pair_has_a_step(attention):
  """Of every pooling one on what the mechanism makes; a whole one of each mechanism is below."""
  module, x = jattn.create_attention(attention), jnp.zeros((2, 5, 7, 16))
  made = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, train=False)[0])
  for pool in POOLINGS:
    behind(pool, made.features.shape)


@pytest.mark.parametrize('index', range(len(POOLINGS)))
def test_each_takes_a_step(index):
  """Each pooling behind two or three mechanisms, one after another."""
  attentions = sorted(MECHANISMS[index :: len(POOLINGS)], key=lambda name: name in RESHAPING)
  images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 10, 14, 3)), jnp.float32)
  model = classifier(attentions, POOLINGS[index])
  started = initial(model, images)
  state, metrics, before = jax.jit(lambda: train(model, images, started))()
  assert int(metrics.skipped) == 0
  assert metrics.loss.shape == ()
  moved = jax.tree.map(lambda a, b: np.any(np.asarray(a) != b), state.params, before.params)
  assert all(jax.tree.leaves(moved['head']))
  assert all(jax.tree.leaves(moved['backbone']))


@pytest.mark.parametrize('attention', MECHANISMS)
def test_the_slot_of_a_block(attention):
  images = jnp.zeros((2, 12, 12, 3))

  def make():
    model = jattn.models.resnet_cifar(CLASSES, depth=8, attention=attention, widths=(16, 16, 16))
    return model.init_with_output(jax.random.key(0), images, train=False)

  if attention in RESHAPING:
    with pytest.raises(ValueError, match='attention in a block must keep the shape'):
      jax.eval_shape(make)
    return
  prediction, variables = jax.eval_shape(make)
  alone = jattn.create_attention(attention)
  x = jnp.zeros((2, 12, 12, 16))
  maps = jax.eval_shape(lambda: alone.init_with_output(jax.random.key(0), x, train=False)[0].maps)
  paths = {f'backbone/stage_{s}/block_0/attention/{name}' for s in range(3) for name in maps}
  assert set(prediction.maps) == paths
  held = 'attention' in variables['params']['backbone']['stage_0_block_0']
  assert held == bool(jax.eval_shape(lambda: alone.init(jax.random.key(0), x, train=False)))
