"""What a card says, against what is known otherwise; and the names of the zoo."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import models
from tests.proof import initial


def test_every_name_has_its_facts():
  assert models.FACTS.keys() == models.MODELS.keys()
  for name, facts in models.FACTS.items():
    assert facts.image_size > 0, name
    assert facts.num_classes > 1, name
    assert facts.source, name


def test_a_card_counts_what_the_layers_cost():
  card = jattn.model_card('seed_classifier', memory=False)
  convolutions = 32**2 * 27 * 64 + 16**2 * 576 * 128 + 8**2 * 1152 * 256
  attention = 16 * 256 * (32 + 32 + 256) + 16 * 16 * (32 + 256)
  assert card.multiply_accumulates == convolutions + attention + 4096 * 512 + 512 * 10
  assert (card.image_size, card.num_classes, card.parameters) == (32, 10, 2_555_850)
  assert card.peak_bytes is None


def test_peak_memory_holds_the_parameters_and_grows_with_the_images():
  small, large = (
    jattn.model_card('resnet20', image_size=size, widths=(4, 4, 4)) for size in (16, 64)
  )
  assert small.peak_bytes >= 4 * small.parameters
  assert large.peak_bytes >= small.peak_bytes + 4 * 3 * (64**2 - 16**2)
  assert large.multiply_accumulates > 10 * small.multiply_accumulates


def test_a_card_lists_the_maps_and_reads_well():
  card = jattn.model_card('resnet20', attention='eca', pool='weighted_average', memory=False)
  assert card.maps[0] == ('backbone/stage_0/block_0/attention/gate', 'gate', (1, 1, 1, 16))
  assert card.maps[-1] == ('pool/weights', 'pool', (1, 1, 8, 8))
  text = str(card)
  assert 'resnet20, 10 classes, 32x32' in text
  assert 'pool/weights  pool  [1, 1, 8, 8]' in text
  assert 'no map' in str(dataclasses.replace(card, maps=()))


def test_names_are_found_by_pattern_and_mistakes_by_likeness():
  assert jattn.list_models('resnet?0') == ['resnet20', 'resnet50']
  assert jattn.list_models('nothing*') == []
  with pytest.raises(ValueError, match="did you mean 'resnet20'"):
    jattn.create_model('resnet-20')
  with pytest.raises(ValueError, match="did you mean 'resnet20'"):
    jattn.model_card('resnet-20')


def test_stages_come_back_finest_first():
  model = jattn.create_model('resnet20', num_classes=5, widths=(4, 6, 8))
  images = jnp.ones((2, 16, 16, 3))
  variables = initial(model, images)
  stages = jax.eval_shape(lambda v, x: models.features(model, v, x), variables, images)
  assert [s.shape for s in stages] == [(2, 16, 16, 4), (2, 8, 8, 6), (2, 4, 4, 8)]
  with pytest.raises(ValueError, match='must have 3 channels'):
    models.features(model, variables, images[..., :1])
