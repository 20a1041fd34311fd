"""Every name of the zoo, without computing anything: counts, settings, maps, slots."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import jattn
from experiments import model_page
from jattn import models, training
from tests.proof import sums_in_half

# Parameters; 10^6 multiply-accumulates, of timm's networks as torch's counter has them; how many
# maps, and the last one: for the classes and the size of images that a name was designed for.
NUMBERS = {
  'botnet26t_256': (
    12_488_672,
    3297,
    3,
    ('backbone/stage_3/block_1/attention/weights', 'position', (1, 4, 64, 64)),
  ),
  'cct_2_3x2_32': (283_723, 35.34, 3, ('pool/weights', 'pool', (1, 1, 8, 8))),
  'cct_7_3x1_32': (3_760_139, 1182, 8, ('pool/weights', 'pool', (1, 1, 16, 16))),
  'coatnet_nano_rw_224': (
    15_141_244,
    2382.7,
    16,
    ('backbone/stage_3/block_2/attention/weights', 'position', (1, 16, 49, 49)),
  ),
  'convnext_atto': (3_695_520, 547.33, 0, None),
  'convnext_pico': (9_045_672, 1367.06, 0, None),
  'ecaresnet26t': (
    16_011_916,
    3330.4,
    8,
    ('backbone/stage_3/block_1/attention/gate', 'gate', (1, 1, 1, 2048)),
  ),
  'gcresnet33ts': (
    19_880_698,
    4735,
    10,
    ('backbone/stage_3/block_1/attention/weights', 'pool', (1, 1, 8, 8)),
  ),
  'gcresnext26ts': (
    10_476_600,
    2408,
    8,
    ('backbone/stage_3/block_1/attention/weights', 'pool', (1, 1, 8, 8)),
  ),
  'halonet26t': (
    12_480_288,
    3173,
    3,
    ('backbone/stage_3/block_1/attention/weights', 'position', (1, 8, 64, 144)),
  ),
  'lambda_resnet26t': (10_958_272, 3003, 0, None),
  'resnest14d': (
    10_611_688,
    2749.4,
    4,
    ('backbone/stage_3/block_0/attention/weights', 'branch', (1, 2, 512)),
  ),
  'resnet18': (11_689_512, 1814.1, 0, None),
  'resnet20': (269_722, 40.55, 0, None),
  'resnet26': (15_995_176, 2342.3, 0, None),
  'resnet26d': (16_014_408, 2581.9, 0, None),
  'resnet26t': (16_011_872, 3330.4, 0, None),
  'resnet32': (464_154, 68.86, 0, None),
  'resnet34': (21_797_672, 3663.8, 0, None),
  'resnet50': (25_557_032, 4089.2, 0, None),
  'resnet50d': (25_576_264, 4328.8, 0, None),
  'resnet56': (853_018, 125.5, 0, None),
  'resnext50_32x4d': (25_028_904, 4230.5, 0, None),
  'scene_classifier': (17_274, 5.357, 1, ('pool/weights', 'pool', (1, 1, 15, 15))),
  'seed_classifier': (2_555_850, 43, 1, ('attention_0/weights', 'position', (1, 1, 16, 16))),
  'seed_classifier_no_attention': (2_473_610, 41.62, 0, None),
  'seed_classifier_weighted_average': (573_450, 40.71, 1, ('pool/weights', 'pool', (1, 1, 4, 4))),
  'seresnet33ts': (
    19_779_200,
    4733,
    10,
    ('backbone/stage_3/block_1/attention/gate', 'gate', (1, 1, 1, 384)),
  ),
  'seresnet50': (
    28_088_024,
    4091.7,
    16,
    ('backbone/stage_3/block_2/attention/gate', 'gate', (1, 1, 1, 2048)),
  ),
  'skresnet18': (
    11_958_056,
    1814.3,
    8,
    ('backbone/stage_3/block_1/attention/weights', 'branch', (1, 2, 512)),
  ),
  'vit_base_patch16_224': (
    86_567_656,
    17563.8,
    12,
    ('backbone/stage_0/block_11/attention/weights', 'position', (1, 12, 197, 197)),
  ),
  'vit_small_patch16_224': (
    22_050_664,
    4598.9,
    12,
    ('backbone/stage_0/block_11/attention/weights', 'position', (1, 6, 197, 197)),
  ),
  'vit_tiny_patch16_224': (
    5_717_416,
    1253.7,
    12,
    ('backbone/stage_0/block_11/attention/weights', 'position', (1, 3, 197, 197)),
  ),
}
KINDS = [n for n in NUMBERS if n.startswith(('seed', 'vit_tiny', 'resnet20', 'cct_2', 'coat'))]
KINDS += ['resnet18', 'skresnet18', 'resnest14d', 'botnet26t_256', 'halonet26t', 'convnext_atto']
TRAINED_LARGE = {'drop_path': 0.1, 'remat': True, 'dtype': jnp.bfloat16}

# One name of each family, narrow, with what makes its slot free for any mechanism.
FAMILIES = {
  'resnet20': {'widths': (8, 8, 8)},
  'resnet18': {'depths': (1, 1), 'widths': (8, 8), 'stem_width': 8},
  'seresnet33ts': {'blocks': ('g', 'g', 'g', 'g')},
  'botnet26t_256': {'blocks': ('c', 'c', 'ca', 'a')},
  'vit_tiny_patch16_224': {'depth': 1, 'width': 16, 'num_heads': 2, 'pool': 'average'},
  'convnext_atto': {'depths': (1, 1), 'widths': (8, 8)},
  'coatnet_nano_rw_224': {'depths': (1, 1, 2, 1)},
  'cct_2_3x2_32': {'depth': 1, 'width': 8, 'stem': (8,)},
  'scene_classifier': {'width': 8, 'stem_width': 8},
}
# Of the feature map after every stage, for images of 64x64.
SIDES = {
  'resnet20': [64, 32, 16],
  'resnet18': [16, 8],
  'seresnet33ts': [16, 8, 4, 2],
  'botnet26t_256': [16, 8, 4, 2],
  'vit_tiny_patch16_224': [4],
  'convnext_atto': [16, 8],
  'coatnet_nano_rw_224': [16, 8, 4, 2],
  'cct_2_3x2_32': [16],
  'scene_classifier': [16],
}
# The layers before the first block, and those of the backbone after the last.
_THREE = {f'stem_{index}_{layer}' for index in range(3) for layer in ('conv', 'norm')}
STEMS = {
  'resnet20': {'conv', 'norm'},
  'resnet18': {'stem_conv_0', 'stem_norm_0'},
  'seresnet33ts': _THREE,
  'botnet26t_256': _THREE,
  'vit_tiny_patch16_224': {'embedding', 'positions'},
  'convnext_atto': {'stem', 'stem_norm'},
  'coatnet_nano_rw_224': {'stem_conv_0', 'stem_conv_1', 'stem_norm'},
  'cct_2_3x2_32': {'conv_0', 'conv_1', 'positions'},
  'scene_classifier': {'stem_conv_0', 'stem_norm_0'},
}
AFTER = {
  'seresnet33ts': {'last_conv', 'last_norm'},
  'coatnet_nano_rw_224': {'norm'},
  'cct_2_3x2_32': {'norm'},
}
KEEPING = sorted(set(jattn.list_attentions()) - {'token_learner'})
NEEDS = {'circular_eca': {'kernel_size': 3}}
POOLINGS = jattn.list_poolings()


def traced(model, size, *, train):
  """Shapes of logits, maps and variables."""
  images = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  keys = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
  return jax.eval_shape(lambda x: model.init_with_output(keys, x, train=train), images)


def test_every_name_has_golden_numbers():
  assert set(models.MODELS) == set(NUMBERS) == set(jattn.list_models())


@pytest.mark.parametrize('name', NUMBERS)
def test_a_card_has_the_numbers_and_the_page_has_the_card(name):
  parameters, products, count, last = NUMBERS[name]
  card = jattn.model_card(name, memory=False)
  assert card.parameters == parameters
  assert card.multiply_accumulates / 1e6 == pytest.approx(products, rel=3e-3)
  assert len(card.maps) == count
  assert (card.maps[-1] if card.maps else None) == last
  assert model_page.row(card) in model_page.PAGE.read_text().splitlines()


@pytest.mark.parametrize('name', KINDS)
def test_each_kind_can_be_trained_as_large_ones_are(name):
  takes = inspect.signature(models.MODELS[name]).parameters
  settings = {key: value for key, value in TRAINED_LARGE.items() if key in takes}
  assert name.startswith('seed') or len(settings) == len(TRAINED_LARGE)
  facts = models.FACTS[name]
  model = jattn.create_model(name, **settings)
  with jax.enable_x64(True):  # float32 all the same
    prediction, variables = traced(model, facts.image_size, train=True)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  assert (prediction.logits.shape, prediction.logits.dtype) == ((1, facts.num_classes), 'float32')
  assert len(prediction.maps) == NUMBERS[name][2]
  for path, found in prediction.maps.items():
    assert path.split('/')[0] in ('backbone', 'attention_0', 'pool'), path
    assert found.weights.dtype == jnp.float32, path
    assert found.kind in jattn.types.MAP_KINDS, path


@pytest.mark.parametrize('name', FAMILIES)
def test_no_gradient_by_a_parameter_is_a_long_sum_in_bfloat16(name):
  """Not over the positions, nor over the images of a batch (of which there are 64)."""
  model = jattn.create_model(name, num_classes=3, dtype=jnp.bfloat16, **FAMILIES[name])
  _, variables = traced(model, 32, train=True)
  params, rest = variables['params'], {k: v for k, v in variables.items() if k != 'params'}

  def loss(params, rest, images):
    given, keys = {'params': params, **rest}, {'dropout': jax.random.key(1)}
    prediction, _ = model.apply(given, images, train=True, mutable=list(rest), rngs=keys)
    return prediction.logits.sum()

  images = jax.ShapeDtypeStruct((64, 32, 32, 3), jnp.float32)
  assert [s for s in sums_in_half(jax.grad(loss), params, rest, images) if s[0] > 16] == []


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('index', range(3))
def test_any_mechanism_and_any_pooling_go_into_any_family(name, index):
  """Each family has other mechanisms in its slot, each mechanism another pooling behind it."""
  offset = list(FAMILIES).index(name) + len(FAMILIES) * index
  attention, pool = KEEPING[offset % len(KEEPING)], POOLINGS[offset % len(POOLINGS)]
  part = {'name': attention, **NEEDS.get(attention, {})}
  settings = {**FAMILIES[name], 'attention': part, 'pool': pool}
  model = jattn.create_model(name, num_classes=3, **settings)
  prediction, variables = traced(model, 32, train=False)
  assert prediction.logits.shape == (1, 3)
  if index == 0:
    control = jattn.create_model(name, num_classes=3, **{**settings, 'attention': None})
    assert jax.tree.structure(traced(control, 32, train=False)[1]) != jax.tree.structure(variables)


@pytest.mark.parametrize('name', FAMILIES)
def test_stages_come_back_finest_first_and_layers_are_known_by_name(name):
  model = jattn.create_model(name, num_classes=2, **FAMILIES[name])
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  stages = jax.eval_shape(lambda v, x: models.features(model, v, x), variables, images)
  assert [stage.shape[1] for stage in stages] == SIDES[name]
  # Rates by layer and frozen stems go by these names.
  listed = training.layer_list(variables['params'])
  assert {path.split('/')[1] for path in listed[0]} == STEMS[name]
  after = {path for path in listed[max(listed)] if path.startswith('backbone/')}
  assert {path.split('/')[1] for path in after} == AFTER.get(name, set())
