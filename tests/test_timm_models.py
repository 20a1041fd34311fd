"""Our networks against what timm's compute: logits, maps, gradients, statistics, both converters.

``fixtures/timm_models/`` holds what timm's networks gave (in float64, see
``fixtures/make_timm_models.py``); neither timm nor torch is needed here.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from experiments.timm_reference import arrange, drawn_state
from jattn.weights import from_timm, to_timm
from tests.fixtures.make_timm_models import CLASSES, draw_images, probe
from tests.fixtures.timm_model_cases import CASES

FOLDER = Path(__file__).parent / 'fixtures' / 'timm_models'
TOLERANCE = 1e-4


@functools.cache
def read(case_id):
  with np.load(FOLDER / f'{case_id}.npz') as file:
    return dict(file)


def under(arrays, prefix):
  return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


def apply(model, variables, images):
  """In both modes the prediction, and in training the new statistics and the gradient.

  One program for each case. The gradient of evaluation mode would double its compilation, and
  differs by the constants of a batch norm alone.
  """

  def loss(params, train):
    given = {**variables, 'params': params}
    prediction, new = model.apply(given, images, train=train, mutable=['batch_stats'])
    weights = jnp.asarray(probe('logits', prediction.logits.shape))
    return (prediction.logits * weights).sum(), (prediction, new)

  def both(params):
    return {
      'eval': (None, loss(params, False)[1]),
      'train': jax.grad(loss, has_aux=True)(params, True),
    }

  return jax.jit(both)(variables['params'])


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.id)
def test_equals_timm(case):
  arrays = read(case.id)
  model = jattn.create_model(case.model, num_classes=CLASSES, **case.settings)
  state = drawn_state({k: tuple(v) for k, v in under(arrays, 'shape/').items()})
  images = jnp.asarray(draw_images(case.batch, case.size))
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
  variables = from_timm(model, state, shapes)
  back = to_timm(model, variables)
  assert back.keys() == state.keys()
  for name, value in back.items():
    np.testing.assert_array_equal(value, state[name])

  for mode, (gradient, (prediction, new)) in apply(model, variables, images).items():
    found = under(arrays, f'{mode}/')
    close(prediction.logits, found['logits'])
    caught = [found[f'map/{index:03}'] for index in range(len(under(found, 'map/')))]
    for name, weights in arrange(caught, prediction.maps).items():
      close(prediction.maps[name].weights, weights, name)
    if mode == 'eval':
      continue
    for name, value in to_timm(model, {'params': gradient}).items():
      check_gradient(name, value, arrays[f'grad/{name}'])
    if new:
      for name, value in to_timm(model, new).items():
        close(value, arrays[f'new/{name}'], name)

  if case.resized is not None:
    images = jnp.asarray(draw_images(case.batch, case.resized))
    prediction = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, images)
    close(prediction.logits, arrays['resized/logits'])


def close(got, want, name=''):
  assert got.shape == want.shape, (name, got.shape, want.shape)
  atol = TOLERANCE * max(1, np.abs(want).max())
  np.testing.assert_allclose(got, want, rtol=0, atol=atol, err_msg=name)


def check_gradient(name, value, want):
  """The product with the probe, relative to how large such a product is: |g| |probe|."""
  weights = probe(name, value.shape)
  size = np.linalg.norm(value) * np.linalg.norm(weights)
  np.testing.assert_allclose((value * weights).sum(), want, rtol=0, atol=TOLERANCE * max(1, size))


def test_every_file_belongs_to_a_case():
  assert {path.stem for path in FOLDER.glob('*.npz')} == {case.id for case in CASES}
