"""The seed's classifier against its corrected PyTorch twin: logits, map and every gradient.

`fixtures/seed_parity.npz` holds what PyTorch computed (in float64, see the script beside it); torch
itself is not needed here.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import Batch, Classifier, training
from jattn.attention import SelfAttention
from jattn.backbones import ConvStack
from jattn.models import Head
from jattn.pooling import Flatten
from tests.proof import initial

FIXTURE = Path(__file__).parent / 'fixtures' / 'seed_parity.npz'
TOLERANCE = 1e-5
GRID = (3, 3)


def conv(weight):
  """OIHW -> HWIO."""
  return weight.transpose(2, 3, 1, 0)


def pointwise(weight):
  """A 1x1 convolution's OI11 -> a Dense kernel, (in, out)."""
  return weight[:, :, 0, 0].T


def linear(weight):
  """(out, in) -> (in, out)."""
  return weight.T


def after_flatten(weight):
  """(out, in) with inputs in C, H, W order -> (in, out) with inputs in H, W, C order."""
  out, size = weight.shape
  by_place = weight.reshape(out, size // (GRID[0] * GRID[1]), *GRID)
  return by_place.transpose(2, 3, 1, 0).reshape(size, out)


# PyTorch's module, ours, and how its weight becomes our kernel.
LAYERS = [
  ('stages.0', ('backbone', 'conv_0'), conv),
  ('stages.1', ('backbone', 'conv_1'), conv),
  ('stages.2', ('backbone', 'conv_2'), conv),
  ('attention.query', ('attention_0', 'query'), pointwise),
  ('attention.key', ('attention_0', 'key'), pointwise),
  ('attention.value', ('attention_0', 'value'), pointwise),
  ('hidden', ('head', 'hidden_0'), after_flatten),
  ('logits', ('head', 'logits'), linear),
]


def to_params(arrays, kind):
  """Arranges the fixture's `state/...` or `grad/...` arrays as the model's parameter tree."""
  params = {}
  for theirs, (part, layer), arrange in LAYERS:
    params.setdefault(part, {})[layer] = {
      'kernel': arrange(arrays[f'{kind}/{theirs}.weight']),
      'bias': arrays[f'{kind}/{theirs}.bias'],
    }
  return params


@pytest.fixture(scope='module')
def arrays():
  with np.load(FIXTURE) as file:
    return dict(file)


@pytest.fixture(scope='module')
def model():
  return Classifier(
    backbone=ConvStack(widths=(6, 8, 12)),
    attention=(SelfAttention(qk_features=4, v_features=20),),
    pool=Flatten(),
    head=Head(num_classes=5, hidden=(28,), dropout=0.5),
  )


@pytest.fixture(scope='module')
def outcome(arrays, model):
  """Our loss, prediction and gradients at PyTorch's weights."""
  images, labels = jnp.asarray(arrays['images']), jnp.asarray(arrays['labels'])

  def loss(params):
    prediction = model.apply({'params': params}, images, train=False)
    log_probabilities = jax.nn.log_softmax(prediction.logits)
    return -log_probabilities[jnp.arange(len(labels)), labels].mean(), prediction

  params = jax.tree.map(jnp.asarray, to_params(arrays, 'state'))
  (value, prediction), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
  return value, prediction, grads


def assert_equal(ours, theirs):
  assert ours.dtype == jnp.float32
  np.testing.assert_allclose(np.asarray(ours, np.float64), theirs, rtol=0, atol=TOLERANCE)


def test_state_dict_fills_every_parameter(arrays, model):
  init = initial(model, jnp.asarray(arrays['images']))['params']
  assert jax.tree.map(jnp.shape, to_params(arrays, 'state')) == jax.tree.map(jnp.shape, init)
  assert 2 * len(LAYERS) == sum(name.startswith('state/') for name in arrays)


def test_logits_and_loss(arrays, outcome):
  loss, prediction, _ = outcome
  assert_equal(prediction.logits, arrays['logits'])
  assert_equal(loss, arrays['loss'])


def test_attention_map(arrays, outcome):
  found = outcome[1].maps['attention_0/weights']
  assert (found.kind, found.grid) == ('position', GRID)
  assert_equal(found.weights, arrays['attention'][:, None])


@pytest.mark.parametrize('kind', ['kernel', 'bias'])
@pytest.mark.parametrize(('part', 'layer'), [ours for _, ours, _ in LAYERS])
def test_gradient(arrays, outcome, part, layer, kind):
  ours, theirs = outcome[2][part][layer][kind], to_params(arrays, 'grad')[part][layer][kind]
  assert_equal(ours, theirs)
  # Softmax ignores what is added to a whole row, so no loss can move the bias of the key.
  if (layer, kind) != ('key', 'bias'):
    assert np.abs(theirs).max() > 100 * TOLERANCE


def test_training_goes_the_same_way(arrays, model):
  """Twenty steps of the recipe: the schedule, clipping, AdamW and what decays are PyTorch's."""
  losses = arrays['losses']
  steps = len(losses)
  schedule = training.make_schedule(1e-3, steps=steps, warmup_steps=steps // 10)
  optimizer = training.make_optimizer('adamw', schedule, weight_decay=0.05, clip_norm=1.0)
  update = training.make_update(
    lambda *args, train, rngs, **kwargs: model.apply(*args, train=False, **kwargs),  # no dropout
    optimizer,
    num_classes=5,
    prepare=lambda images: images,
  )
  params = jax.tree.map(jnp.asarray, to_params(arrays, 'state'))
  state = training.create_state(
    lambda key: {'params': params}, optimizer, seed=0, mesh=training.make_mesh()
  )
  images, labels = jnp.asarray(arrays['images']), jnp.asarray(arrays['labels'])
  batch = Batch(images, labels, jnp.ones(len(labels), bool))
  step, found = jax.jit(update), []
  for _ in range(steps):
    state, metrics = step(state, batch)
    found.append(metrics.loss / metrics.count)
  # float32 beside float64, through twenty divisions by the root of a squared gradient.
  np.testing.assert_allclose(found, losses, rtol=3e-5)
