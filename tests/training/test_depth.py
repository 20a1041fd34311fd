"""What belongs to which layer, from the names alone; rates and what is frozen follow from it."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.training import Layers, layer_list, layer_scales
from jattn.training.depth import Frozen, frozen_mask


def tree(*paths):
  """Parameters of size one at these paths."""
  root: dict = {}
  for path in paths:
    *above, leaf = path.split('/')
    place = root
    for name in above:
      place = place.setdefault(name, {})
    place[leaf] = jnp.ones(1)
  return root


# Kinds of names that backbones here have, under the number of their layer; tests/models/test_zoo.py
# asks the networks themselves.
CONVOLUTIONAL = {
  0: ['backbone/conv/kernel', 'backbone/norm/scale', 'backbone/stem_norm_0/bias'],
  1: ['backbone/stage_0_block_0/conv_0/kernel', 'backbone/insert_stage_0_block_0/query/kernel'],
  2: ['backbone/stage_0_block_1/conv_0/kernel', 'backbone/insert_stage_0/query/kernel'],
  3: [
    'backbone/downsample_1/kernel',
    'backbone/downsample_1_norm/scale',
    'backbone/stage_1_block_0/attention/reduce/kernel',
    'backbone/insert_stage_1/gate/kernel',
  ],
  4: [
    'backbone/last_conv/kernel',
    'attention_0/query/kernel',
    'pool/score/kernel',
    'head/logits/kernel',
    'head/norm/scale',
  ],
}
TRANSFORMER = {
  0: ['backbone/embedding/kernel', 'backbone/positions', 'backbone/class_token'],
  # Block 10 comes after block 9, not after block 1.
  **{i + 1: [f'backbone/stage_0_block_{i}/mlp/expand/kernel'] for i in range(11)},
  12: ['backbone/norm/scale', 'head/logits/bias'],
}


@pytest.mark.parametrize('wanted', [CONVOLUTIONAL, TRANSFORMER], ids=['conv', 'transformer'])
def test_every_parameter_has_its_layer(wanted):
  params = tree(*(path for paths in wanted.values() for path in paths))
  layers = Layers.of(params)
  assert layers.last == max(wanted)
  for number, paths in wanted.items():
    assert {path: layers.number(path) for path in paths} == dict.fromkeys(paths, number)
  listed = layer_list(params)
  assert {number: sorted(paths) for number, paths in listed.items()} == {
    number: sorted(paths) for number, paths in wanted.items()
  }


def test_rates_fall_from_the_head_to_the_stem():
  params = tree(*(path for paths in CONVOLUTIONAL.values() for path in paths))
  scales = layer_scales(params, 0.5)
  assert scales['head']['logits']['kernel'] == 1
  assert scales['backbone']['stage_1_block_0']['attention']['reduce']['kernel'] == 0.5
  assert scales['backbone']['stage_0_block_1']['conv_0']['kernel'] == 0.25
  assert scales['backbone']['stage_0_block_0']['conv_0']['kernel'] == 0.125
  assert scales['backbone']['norm']['scale'] == 0.0625
  with pytest.raises(ValueError, match='needs blocks'):
    layer_scales({'kernel': jnp.ones(1)}, 0.5)


@pytest.mark.parametrize(
  ('place', 'last'),
  [('stem', 0), ('stage_0/block_0', 1), ('stage_0', 2), ('stage_1', 3), ('stage_1/block_0', 3)],
)
def test_a_place_freezes_all_up_to_it(place, last):
  params = tree(*(path for paths in CONVOLUTIONAL.values() for path in paths))
  frozen = Frozen(Layers.of(params), place)
  for number, paths in CONVOLUTIONAL.items():
    assert [frozen(path) for path in paths] == [number <= last] * len(paths)
  mask = frozen_mask(params, place)
  np.testing.assert_array_equal(mask['backbone']['conv']['kernel'], True)
  assert mask['head']['logits']['kernel'] is False


def test_the_backbone_is_frozen_with_its_last_norm():
  params = tree(*(path for paths in TRANSFORMER.values() for path in paths))
  frozen = Frozen(Layers.of(params), 'backbone')
  assert frozen('backbone/norm/scale')
  assert not frozen('head/logits/bias')
  assert not Frozen(Layers.of(params), 'stage_0')('backbone/norm/scale')


def test_a_place_that_is_not_there_is_refused_with_those_that_are():
  params = tree('backbone/stage_0_block_0/kernel')
  with pytest.raises(ValueError, match=r"'stage_1'.*'stem', 'stage_0/block_0', 'stage_0', 'back"):
    frozen_mask(params, 'stage_1')
