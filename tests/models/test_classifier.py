"""The first models: maps, the whole formula, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import models
from jattn.attention import Residual, SelfAttention
from jattn.backbones import ConvStack
from jattn.models import Classifier, Head
from jattn.pooling import Average, Flatten
from tests import oracles
from tests.proof import initial

MAPS = {
  'resnet20': {},
  'resnet32': {},
  'resnet56': {},
  'seed_classifier': {'attention_0/weights': ('position', (3, 1, 16, 16))},
  'seed_classifier_no_attention': {},
  'seed_classifier_weighted_average': {'pool/weights': ('pool', (3, 1, 4, 4))},
}


@pytest.mark.parametrize('name', MAPS)
def test_maps(name):
  model = jattn.create_model(name, num_classes=10)
  images = jnp.zeros((3, 32, 32, 3))
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
  prediction = jax.eval_shape(lambda v: model.apply(v, images, train=False), variables)
  assert prediction.logits.shape == (3, 10)
  found = {path: (m.kind, m.weights.shape) for path, m in prediction.maps.items()}
  assert found == MAPS[name]
  assert all(m.grid == (4, 4) for m in prediction.maps.values())


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-6), ('float64', 1e-12)])
def test_the_seed_classifier_equals_the_formula(rng, dtype, tolerance):
  """The whole tutorial in float64 loops: stages, attention, flatten, two linear layers."""
  with jax.enable_x64(dtype == 'float64'):
    model = models.seed_classifier(5, image_size=16, widths=(3, 4, 8), hidden=6)
    x = jnp.asarray(0.5 * rng.normal(size=(1, 16, 16, 3)), dtype)
    variables = jax.tree.map(
      lambda p: (np.asarray(p) + 0.05 * rng.normal(size=p.shape)).astype(dtype), initial(model, x)
    )
    logits = jax.jit(lambda v, x: model.apply(v, x, train=False).logits)(variables, x)
    params = variables['params']
    features = np.asarray(x[0], np.float64)
    for stage in range(3):
      features = oracles.conv3x3(features, params['backbone'][f'conv_{stage}'])
      features = oracles.max_pool2(np.maximum(features, 0))
    tokens = features.reshape(4, 8)
    q, k, v = (
      oracles.dense(tokens, params['attention_0'][name])[:, None]
      for name in ('query', 'key', 'value')
    )
    assert q.shape == (4, 1, 1)
    assert v.shape == (4, 1, 8)
    vector = oracles.attend(q, k, v).reshape(-1)
    hidden = np.maximum(oracles.dense(vector, params['head']['hidden_0']), 0)
    want = oracles.dense(hidden, params['head']['logits'])
    np.testing.assert_allclose(logits[0], want, atol=tolerance, rtol=0)


def test_dropout_works_in_training_only():
  model = models.seed_classifier(5, image_size=16, widths=(4, 4, 8), hidden=64)
  x = jnp.ones((2, 16, 16, 3))
  variables = initial(model, x)

  def logits(seed):
    return model.apply(variables, x, train=True, rngs={'dropout': jax.random.key(seed)}).logits

  assert np.abs(logits(1) - logits(2)).max() > 1e-4
  np.testing.assert_array_equal(logits(1), logits(1))
  a, b = (model.apply(variables, x, train=False).logits for _ in range(2))
  np.testing.assert_array_equal(a, b)


def test_dropout_drops_half_and_keeps_the_mean():
  head = Head(2, (4000,), dropout=0.5)
  variables = initial(head, jnp.ones((1, 3)))
  params = jax.tree.map(jnp.zeros_like, variables['params'])
  params['hidden_0']['bias'] = jnp.ones(4000)
  params['logits']['kernel'] = jnp.ones((4000, 2)) / 4000
  out = head.apply(
    {'params': params}, jnp.ones((1, 3)), train=True, rngs={'dropout': jax.random.key(3)}
  )
  np.testing.assert_allclose(out, 1, atol=0.1)
  kept = out[0, 0] * 4000 / 2
  assert 1800 < kept < 2200


def test_maps_of_several_mechanisms_have_paths_of_their_own(rng):
  model = Classifier(
    backbone=ConvStack((4,)),
    attention=(Residual(SelfAttention()), SelfAttention(num_heads=2)),
    pool=Average(),
    head=Head(3),
  )
  x = jnp.asarray(rng.normal(size=(1, 6, 6, 3)), jnp.float32)
  variables = initial(model, x)
  maps = model.apply(variables, x, train=False).maps
  assert {p: m.weights.shape for p, m in maps.items()} == {
    'attention_0/weights': (1, 1, 9, 9),
    'attention_1/weights': (1, 2, 9, 9),
  }


def test_bfloat16_gives_float32_logits_near_those_of_float32(rng):
  x = jnp.asarray(rng.normal(size=(2, 16, 16, 3)), jnp.float32)
  full = models.seed_classifier(5, image_size=16, widths=(4, 8, 16), hidden=12)
  half = models.seed_classifier(5, image_size=16, widths=(4, 8, 16), hidden=12, dtype=jnp.bfloat16)
  variables = initial(full, x)
  prediction = half.apply(variables, x, train=False)
  assert prediction.logits.dtype == jnp.float32
  assert prediction.maps['attention_0/weights'].weights.dtype == jnp.float32
  difference = np.abs(prediction.logits - full.apply(variables, x, train=False).logits).max()
  assert 0 < difference < 0.05


def compiled_text(read_maps: bool) -> str:
  """HLO of a model whose attention is the last thing before the average."""
  x = jnp.zeros((2, 22, 22, 3))
  model = Classifier(ConvStack((7,)), Average(), Head(3), attention=(SelfAttention(num_heads=7),))
  variables = initial(model, x)

  def run(v, x):
    prediction = model.apply(v, x, train=False)
    return prediction if read_maps else prediction.logits

  return jax.jit(run).lower(variables, x).compile().as_text()


def test_a_map_that_nobody_reads_is_not_an_output():
  """The compiled program returns the [B, M, N, N] map only when somebody asks for it."""

  def results(text):
    return text.partition('->(')[2].partition(')}')[0] or text.partition('->')[2][:200]

  assert '2,7,121,121' in results(compiled_text(read_maps=True))
  assert '2,7,121,121' not in results(compiled_text(read_maps=False))


@pytest.mark.parametrize(
  ('images', 'message'),
  [
    (np.zeros((32, 32, 3), np.float32), r'must be \[B, H, W, C\]'),
    (np.zeros((1, 32, 32, 3), np.uint8), 'must be floating, got uint8'),
    (np.zeros((1, 32, 32, 1), np.float32), '3 channels .* got 1'),
    (np.zeros((1, 28, 28, 3), np.float32), 'takes 32x32 images, got 28x28'),
  ],
)
def test_bad_images_are_named(images, message):
  model = jattn.create_model('seed_classifier', num_classes=10)
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.asarray(images), train=False))


def test_bad_models_are_named():
  with pytest.raises(ValueError, match="did you mean 'seed_classifier"):
    jattn.create_model('seed_clasifier', num_classes=10)
  with pytest.raises(ValueError, match='num_classes=1'):
    jattn.create_model('seed_classifier', num_classes=1)
  with pytest.raises(ValueError, match="no setting 'width'; did you mean 'widths'"):
    jattn.create_model('seed_classifier', num_classes=10, width=3)
  with pytest.raises(ValueError, match="did you mean 'squeeze_excite'"):
    jattn.create_model('resnet20', num_classes=10, attention='squeeze_exite')
  attention = {'name': 'squeeze_excite', 'ratio': 8}
  with pytest.raises(ValueError, match="'squeeze_excite' takes no setting 'ratio'"):
    jattn.create_model('resnet20', num_classes=10, attention=attention)
  small = Classifier(ConvStack((4, 4, 4)), Flatten(), Head(3))
  with pytest.raises(ValueError, match='at least 8x8, got 4x4'):
    initial(small, jnp.zeros((1, 4, 4, 3)))
