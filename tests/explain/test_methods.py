"""Every method on a linear model, against loops, and by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jattn.explain import CONTROLS, METHODS, degenerate, explain, upsample
from tests.explain.networks import (
  CLASSES,
  Linear,
  convolutional,
  features_of,
  moved,
  pictures,
  predict,
)

TARGETS = jnp.array([2, 0])
KEY = jax.random.key(7)
# Cheap settings for the tests that call every method.
FEW = {
  'integrated_gradients': {'nodes': 4},
  'smooth_grad': {'samples': 3},
  'rise': {'samples': 5, 'cells': 3},
  'occlusion': {'window': 4, 'stride': 4},
}


@pytest.fixture(scope='module')
def linear():
  model, images = Linear(), pictures(2, 5, 7, 3)
  variables = moved(model, images, scale=3.0)
  kernel = np.asarray(variables['params']['kernel'], np.float64)
  return model, variables, images, np.moveaxis(kernel[..., np.asarray(TARGETS)], -1, 0)


def test_on_a_linear_model_three_methods_are_one(linear):
  model, variables, images, kernel = linear
  want = (np.asarray(images, np.float64) * kernel).sum(axis=-1)
  calls = {
    'input_x_gradient': {},
    'integrated_gradients': {'nodes': 3},
    'occlusion': {'window': 1, 'stride': 1},
  }
  for method, settings in calls.items():
    got = explain(method, model, variables, images, TARGETS, **settings)
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_on_a_linear_model_gradients_are_the_kernel(linear):
  model, variables, images, kernel = linear
  want = np.abs(kernel).max(axis=-1)
  for method in ('saliency', 'smooth_grad'):
    got = explain(method, model, variables, images, TARGETS, key=KEY)
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_integrated_gradients_are_complete():
  model, variables, images = convolutional()
  start = 0.3 * pictures(*images.shape, seed=4)

  def scores(x):
    return predict(model, variables, x).logits[jnp.arange(2), TARGETS]

  settings = {'baseline': start, 'nodes': 64, 'images_at_once': 20}
  maps = explain('integrated_gradients', model, variables, images, TARGETS, **settings)
  want = scores(images) - scores(start)
  assert np.abs(want).min() > 0.01
  np.testing.assert_allclose(maps.sum(axis=(1, 2)), want, rtol=1e-2)


def test_smooth_grad_averages_gradients_at_noisy_images():
  """Gradients of a quadratic are linear: the mean over the noise is that at the mean image."""
  from jattn.explain.input_gradients import smooth_grad
  from jattn.explain.subject import Subject

  class Quadratic:
    def apply(self, variables, images, train):
      from jattn.types import Prediction

      return Prediction((images**2).sum(axis=(1, 2, 3))[:, None])

  images = pictures(2, 4, 5, 3)
  images = images * jnp.array([1.0, 3.0])[:, None, None, None]
  noise = np.mean(
    [jax.random.normal(jax.random.fold_in(KEY, n), (4, 5, 3)) for n in range(5)], axis=0
  )
  span = images.max(axis=(1, 2, 3)) - images.min(axis=(1, 2, 3))
  mean = images + 0.15 * span[:, None, None, None] * noise[None]

  @jax.jit
  def explained(images):
    subject = Subject(Quadratic(), {}, images, jnp.zeros(2, jnp.int32), KEY)
    return smooth_grad(subject, samples=5, images_at_once=4)

  got = explained(images)
  np.testing.assert_allclose(got, np.abs(2 * mean).max(axis=-1), rtol=1e-5)


def test_occlusion_is_a_loop_over_windows():
  """Windows of 3 every 2 pixels: those at the border are cut, drops are averaged."""
  model, variables, images = convolutional(None, size=(7, 6))
  cover = pictures(1, 1, 1, 3, seed=9)

  def scores(x):
    return np.asarray(predict(model, variables, x).logits, np.float64)[np.arange(2), TARGETS]

  drops, times = np.zeros((2, 7, 6)), np.zeros((7, 6))
  for top in range(0, 5, 2):
    for left in range(0, 5, 2):
      covered = np.array(images)
      covered[:, top : top + 3, left : left + 3] = cover
      drops[:, top : top + 3, left : left + 3] += (scores(images) - scores(covered))[:, None, None]
      times[top : top + 3, left : left + 3] += 1
  settings = {'window': 3, 'stride': 2, 'baseline': cover}
  got = explain('occlusion', model, variables, images, TARGETS, **settings, images_at_once=8)
  np.testing.assert_allclose(got, drops / times, atol=1e-5)


def test_rise_weighs_masks_by_probability(linear):
  from jattn.explain.perturbation import _mask

  model, variables, images, _ = linear

  @jax.jit
  def draw(key):
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(7))
    return jax.vmap(lambda key: _mask(key, (5, 7), 3, 0.4))(keys)

  masks = draw(KEY)
  probabilities = [
    jax.nn.softmax(predict(model, variables, images * m[None, ..., None]).logits) for m in masks
  ]
  weights = np.asarray(probabilities)[:, np.arange(2), TARGETS]
  want = np.einsum('nb,nhw->bhw', weights, np.asarray(masks)) / (7 * 0.4)
  settings = {'samples': 7, 'cells': 3, 'probability': 0.4, 'images_at_once': 6}
  got = explain('rise', model, variables, images, TARGETS, key=KEY, **settings)
  np.testing.assert_allclose(got, want, rtol=1e-5)


def test_rise_s_masks_have_the_mean_they_should():
  from jattn.explain.perturbation import _mask

  keys = jax.random.split(KEY, 4000)
  masks = np.asarray(jax.jit(jax.vmap(lambda key: _mask(key, (9, 12), 4, 0.3)))(keys))
  assert masks.min() >= 0
  assert masks.max() <= 1
  np.testing.assert_allclose(masks.mean(axis=0), 0.3, atol=0.04)


def test_class_activation_maps():
  model, variables, images = convolutional()
  found, _ = features_of(model, variables, images, TARGETS)
  features, gradient = (np.asarray(a, np.float64) for a in found)
  plus = np.zeros((2, 8))
  for image in range(2):
    for channel in range(8):
      f, g = features[image, ..., channel], gradient[image, ..., channel]
      for value in g.ravel():
        share = value**2 / (2 * value**2 + f.sum() * value**3)
        plus[image, channel] += share * max(value, 0)
  mean = gradient.mean(axis=(1, 2), keepdims=True)
  want = {
    'grad_cam': np.maximum((mean * features).sum(-1), 0),
    'grad_cam_plus_plus': np.maximum((plus[:, None, None] * features).sum(-1), 0),
    'hires_cam': (gradient * features).sum(-1),
    'layer_cam': np.maximum((np.maximum(gradient, 0) * features).sum(-1), 0),
  }
  for method, plane in want.items():
    got = explain(method, model, variables, images, TARGETS)
    plane = upsample(jnp.asarray(plane, jnp.float32), (8, 12))
    assert np.abs(plane).max() > 1e-3, method
    np.testing.assert_allclose(got, plane, atol=1e-5 * np.abs(plane).max(), err_msg=method)


def test_hires_cam_sums_to_the_logit_less_its_bias():
  model, variables, images = convolutional(pool='average')
  logits = predict(model, variables, images).logits
  bias = variables['params']['head']['logits']['bias']
  (features, gradient), _ = features_of(model, variables, images, TARGETS)
  got = (features * gradient).sum(axis=(1, 2, 3))
  np.testing.assert_allclose(got, (logits - bias[None])[jnp.arange(2), TARGETS], atol=1e-5)


@pytest.mark.parametrize('method', sorted(set(METHODS) - {'random'}))
def test_an_image_s_map_does_not_depend_on_its_neighbours(method):
  """And by default the predicted class is asked about."""
  model, variables, images = convolutional()
  settings = FEW.get(method, {})
  predicted = predict(model, variables, images).logits.argmax(-1)
  both = explain(method, model, variables, images, predicted, key=KEY, **settings)
  turned = explain(method, model, variables, images[::-1], predicted[::-1], key=KEY, **settings)
  assert both.shape == (2, 8, 12)
  assert both.dtype == jnp.float32
  assert degenerate(both).tolist() == [method == 'constant'] * 2
  np.testing.assert_allclose(both, turned[::-1], atol=1e-5 * np.abs(both).max())


@pytest.mark.parametrize('method', ['chefer', 'occlusion'])
def test_a_batch_is_its_images_one_by_one_and_the_predicted_class_is_the_default(method):
  model, variables, images = convolutional()
  settings = FEW.get(method, {})
  predicted = predict(model, variables, images).logits.argmax(-1)
  both = explain(method, model, variables, images, predicted, **settings)
  for index in range(2):
    one = explain(method, model, variables, images[index : index + 1], **settings)
    np.testing.assert_allclose(one[0], both[index], atol=1e-4 * np.abs(both).max())


def test_controls():
  model, variables, images = convolutional()
  maps = {name: np.asarray(explain(name, model, variables, images, key=KEY)) for name in CONTROLS}
  assert (maps['constant'] == 1).all()
  assert not (maps['random'][0] == maps['random'][1]).any()
  y, x = np.unravel_index(maps['centre'][0].argmax(), (8, 12))
  assert (y, x) in [(3, 5), (3, 6), (4, 5), (4, 6)]
  np.testing.assert_allclose(maps['centre'], maps['centre'][:, ::-1, ::-1], rtol=1e-5)
  # A step of one between two columns: each pixel beside it has the Sobel response 1 + 2 + 1.
  step = jnp.zeros((1, 5, 6, 2)).at[:, :, 3:].set(1.0)
  edges = np.asarray(explain('edges', model, variables, step))
  np.testing.assert_allclose(edges[0], np.tile([0, 0, 4, 4, 0, 0], (5, 1)), atol=1e-3)


def test_compiled_once():
  from jattn.explain import methods

  model, variables, images = convolutional()
  explain('saliency', model, variables, images, TARGETS)
  before = methods._explain._cache_size()
  explain('saliency', model, variables, images + 1, TARGETS[::-1])
  assert methods._explain._cache_size() == before


@pytest.mark.parametrize(
  ('call', 'message'),
  [
    ({'method': 'gradcam'}, "did you mean 'grad_cam'"),
    ({'method': 'occlusion', 'size': 3}, "no setting 'size'"),
    ({'method': 'occlusion', 'window': 9}, 'window=9 must be in 1..8'),
    ({'method': 'occlusion', 'window': 2, 'stride': 3}, 'never be covered'),
    ({'method': 'rise'}, 'needs key='),
    ({'method': 'rise', 'probability': 0.0, 'key': KEY}, 'probability'),
    ({'method': 'integrated_gradients', 'nodes': 0}, 'nodes=0'),
    ({'method': 'smooth_grad', 'samples': 0, 'key': KEY}, 'samples=0'),
    ({'method': 'rollout', 'residual': 2.0}, 'residual=2.0'),
    ({'method': 'saliency', 'targets': jnp.zeros(3, int)}, r'targets must be integers \[2\]'),
  ],
)
def test_a_wrong_call_is_named(call, message):
  model, variables, images = convolutional()
  with pytest.raises(ValueError, match=message):
    explain(model=model, variables=variables, images=images, **call)


def test_maps_need_a_classifier(linear):
  model, variables, images, _ = linear
  assert explain('saliency', model, variables, images).shape == (2, 5, 7)
  assert CLASSES == 3
  with pytest.raises(ValueError, match='not of Linear'):
    explain('grad_cam', model, variables, images)


@pytest.mark.parametrize('method', ['rise', 'integrated_gradients', 'occlusion'])
def test_memory_does_not_grow_with_the_number_of_looks(linear, method):
  """Ten times as many masks, nodes or windows need no more room."""
  from jattn.explain import methods

  model, variables, images, _ = linear
  many = {
    'rise': [('samples', 40), ('samples', 400)],
    'integrated_gradients': [('nodes', 20), ('nodes', 200)],
    'occlusion': [('window', 4), ('window', 1)],
  }

  def room(setting):
    settings = tuple(sorted([setting, ('images_at_once', 8)]))
    lowered = methods._explain.lower(method, model, settings, variables, images, TARGETS, KEY, {})
    return lowered.compile().memory_analysis().temp_size_in_bytes

  few, more = (room(setting) for setting in many[method])
  assert more < 1.25 * few + 10_000


@pytest.mark.parametrize('method', ['gradient_attention', 'occlusion'])
def test_images_may_lie_on_a_mesh_with_explicit_axes(method):
  """As ``jax.make_mesh`` makes it."""
  model, variables, images = convolutional()
  settings = FEW.get(method, {})
  want = explain(method, model, variables, images, TARGETS, **settings)
  mesh = jax.make_mesh((2,), ('data',), axis_types=(AxisType.Explicit,), devices=jax.devices()[:2])
  with jax.set_mesh(mesh):
    placed, asked = (jax.device_put(x, NamedSharding(mesh, P('data'))) for x in (images, TARGETS))
    found = explain(method, model, variables, placed, asked, **settings)
  assert found.sharding.spec[0] == 'data'
  np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
