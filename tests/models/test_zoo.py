"""Every name of the zoo, without computing anything: counts, settings, maps, slots."""

import inspect

import jax
import jax.numpy as jnp
import pytest

import jattn
from jattn import models

# For the classes and the size of images that a name was designed for.
PARAMETERS = {
  'botnet26t_256': 12_488_672,
  'cct_2_3x2_32': 283_723,
  'cct_7_3x1_32': 3_760_139,
  'coatnet_nano_rw_224': 15_141_244,
  'convnext_atto': 3_695_520,
  'convnext_pico': 9_045_672,
  'ecaresnet26t': 16_011_916,
  'gcresnet33ts': 19_880_698,
  'gcresnext26ts': 10_476_600,
  'halonet26t': 12_480_288,
  'lambda_resnet26t': 10_958_272,
  'resnest14d': 10_611_688,
  'resnet18': 11_689_512,
  'resnet20': 269_722,
  'resnet26': 15_995_176,
  'resnet26d': 16_014_408,
  'resnet26t': 16_011_872,
  'resnet32': 464_154,
  'resnet34': 21_797_672,
  'resnet50': 25_557_032,
  'resnet50d': 25_576_264,
  'resnet56': 853_018,
  'resnext50_32x4d': 25_028_904,
  'seed_classifier': 2_555_850,
  'seed_classifier_no_attention': 2_473_610,
  'seed_classifier_weighted_average': 573_450,
  'seresnet33ts': 19_779_200,
  'seresnet50': 28_088_024,
  'skresnet18': 11_958_056,
  'vit_base_patch16_224': 86_567_656,
  'vit_small_patch16_224': 22_050_664,
  'vit_tiny_patch16_224': 5_717_416,
}
# They look at nothing that comes back, see their docstrings.
WITHOUT_MAPS = {name for name in PARAMETERS if name.startswith(('resnet', 'resnext', 'convnext'))}
WITHOUT_MAPS |= {'lambda_resnet26t', 'seed_classifier_no_attention'}
KINDS = [n for n in PARAMETERS if n.startswith(('seed', 'vit_tiny', 'resnet20', 'cct_2', 'coat'))]
KINDS += ['resnet18', 'skresnet18', 'resnest14d', 'botnet26t_256', 'halonet26t', 'convnext_atto']
TRAINED_LARGE = {'drop_path': 0.1, 'remat': True, 'dtype': jnp.bfloat16}

# One name of each family, narrow, with what makes its slot free for any mechanism.
FAMILIES = {
  'resnet20': {'widths': (8, 8, 8)},
  'resnet18': {'depths': (1, 1), 'widths': (8, 8), 'stem_width': 8},
  'seresnet33ts': {},
  'botnet26t_256': {},
  'vit_tiny_patch16_224': {'depth': 1, 'width': 16, 'num_heads': 2, 'pool': 'average'},
  'convnext_atto': {'depths': (1, 1), 'widths': (8, 8)},
  'coatnet_nano_rw_224': {},
  'cct_2_3x2_32': {'depth': 1, 'width': 8, 'stem': (8,)},
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
  assert set(models.MODELS) == set(PARAMETERS) == set(jattn.list_models())


# The families' own tests count every name; here each kind of network is trained as large ones are.
@pytest.mark.parametrize('name', KINDS)
def test_counts_maps_and_the_settings_of_large_training(name):
  takes = inspect.signature(models.MODELS[name]).parameters
  settings = {key: value for key, value in TRAINED_LARGE.items() if key in takes}
  assert name.startswith('seed') or len(settings) == len(TRAINED_LARGE)
  facts = models.FACTS[name]
  model = jattn.create_model(name, **settings)
  prediction, variables = traced(model, facts.image_size, train=True)
  parameters = jax.tree.leaves(variables['params'])
  assert sum(leaf.size for leaf in parameters) == PARAMETERS[name]
  assert {leaf.dtype for leaf in parameters} == {jnp.dtype('float32')}
  assert (prediction.logits.shape, prediction.logits.dtype) == ((1, facts.num_classes), 'float32')
  assert bool(prediction.maps) == (name not in WITHOUT_MAPS)
  for path, found in prediction.maps.items():
    assert path.split('/')[0] in ('backbone', 'attention_0', 'pool'), path
    assert found.weights.dtype == jnp.float32, path
    assert found.kind in jattn.types.MAP_KINDS, path


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
def test_stages_come_back_finest_first(name):
  model = jattn.create_model(name, num_classes=2, **FAMILIES[name])
  images = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  variables = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), images)
  stages = jax.eval_shape(lambda v, x: models.features(model, v, x), variables, images)
  assert [stage.shape[1] for stage in stages] == SIDES[name]
