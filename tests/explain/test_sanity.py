"""Whether a map depends on the parameters and on the class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import Classifier
from jattn.backbones import ConvStack
from jattn.explain import (
  class_sensitivity,
  explain,
  parameter_randomisation,
  spearman,
)
from jattn.explain.sanity import layers_from_the_top
from jattn.models import Head
from jattn.pooling import Average
from tests.explain.networks import convolutional, predict, transformer
from tests.proof import initial

KEY = jax.random.key(5)
TARGETS = jnp.array([2, 0])


def test_layers_come_from_the_top():
  model, variables, images = transformer()
  got = layers_from_the_top(model, variables, images)
  assert got[:4] == [
    'head',
    'backbone/norm',
    'backbone/stage_0_block_1',
    'backbone/stage_0_block_0',
  ]
  assert set(got[4:]) == {
    'backbone/class_position',
    'backbone/class_token',
    'backbone/embedding',
    'backbone/positions',
  }
  assert layers_from_the_top(*convolutional())[:2] == ['head', 'attention_0']


def test_parameters_drawn_anew_change_a_map_that_depends_on_them():
  """In the end all of them are those of a new network."""
  model, variables, images = convolutional()
  scores = parameter_randomisation(KEY, 'grad_cam', model, variables, images, TARGETS)
  assert list(scores)[:3] == ['unchanged', 'head', 'attention_0']
  assert (scores['unchanged'].value == 1).all()
  last = list(scores.values())[-1]
  assert not last.higher_is_better
  assert (last.value < 0.9).all()
  fresh = jax.jit(lambda key: model.init(key, images, train=False))(KEY)
  maps = [explain('grad_cam', model, v, images, TARGETS) for v in (variables, fresh)]
  assert last.value.tolist() == spearman(*map(jnp.abs, maps))[0].tolist()
  assert all(np.isfinite(s.value).all() for s in scores.values())


def test_a_map_that_knows_nothing_of_the_parameters_scores_one():
  scores = parameter_randomisation(KEY, 'edges', *convolutional(), TARGETS)
  assert len(scores) > 3
  for score in scores.values():
    assert (score.value == 1).all()
    assert (score.value == score.chance).all()


def test_randomisation_leaves_the_layers_below_as_they_are():
  """With only the head drawn anew, rollout, which is below it, does not change."""
  scores = parameter_randomisation(KEY, 'rollout', *convolutional(), TARGETS)
  assert (scores['head'].value == 1).all()
  assert (scores['attention_0'].value < 1).all()


def test_parameters_of_another_size_are_refused():
  model, variables, images = transformer()
  with pytest.raises(ValueError, match='other shapes'):
    parameter_randomisation(KEY, 'rollout', model, variables, images[:, :4], TARGETS)


def test_class_sensitivity():
  blind = class_sensitivity('rollout', *convolutional())
  assert (blind.value == 1).all()
  assert (blind.gain == 0).all()
  seeing = class_sensitivity('hires_cam', *convolutional())
  assert (seeing.value < 1).all()
  assert not seeing.higher_is_better
  same = class_sensitivity('hires_cam', *convolutional(), TARGETS, others=TARGETS)
  assert (same.value == 1).all()


def test_class_sensitivity_of_one_class_is_refused():
  model, images = Classifier(ConvStack((4,)), Average(), Head(1)), jnp.ones((1, 4, 4, 3))
  with pytest.raises(ValueError, match='the model has one'):
    class_sensitivity('gradcam', model, initial(model, images), images)


def test_class_sensitivity_takes_the_likeliest_other_class():
  model, variables, images = convolutional()
  order = jnp.argsort(-predict(model, variables, images).logits, axis=1)
  want = class_sensitivity('hires_cam', model, variables, images, order[:, 0], others=order[:, 1])
  got = class_sensitivity('hires_cam', model, variables, images)
  assert got.value.tolist() == want.value.tolist()
