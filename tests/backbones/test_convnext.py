"""ConvNeXt: against the formula, sizes that patches do not fill, the slot, and timm's names."""

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.attention import SelfAttention, SqueezeExcite
from jattn.backbones import ConvNeXt, ConvNeXtBlock
from jattn.weights import from_timm, to_timm
from tests.layer_oracles import convolve, gelu, layer_norm
from tests.proof import flat, initial, prove, variables_of

NARROW = {'depths': (1, 2), 'widths': (4, 6)}
IMAGES = (2, 11, 17, 3)


def linear(p, name, x):
  return x @ p[f'{name}/kernel'] + p[f'{name}/bias']


def block(p, x):
  channels = x.shape[-1]
  y = convolve(x, p['depthwise/kernel'], groups=channels) + p['depthwise/bias']
  y = linear(p, 'expand', layer_norm(y, p, 'norm'))
  y = linear(p, 'reduce', gelu(y))
  if 'attention/reduce/kernel' in p:
    hidden = linear(p, 'attention/reduce', y.mean((1, 2)))
    y = y / (1 + np.exp(-linear(p, 'attention/expand', np.maximum(hidden, 0))))[:, None, None]
  return x + (y * p['scale/gamma'] if 'scale/gamma' in p else y)


@pytest.mark.parametrize(
  'settings',
  [
    {'attention': lambda: SqueezeExcite(reduction=1), 'kernel_size': 5, 'mlp_ratio': 1.5},
    {'init_values': None},
  ],
  ids=['attention', 'no scale'],
)
def test_a_block_equals_the_formula(settings):
  prove(ConvNeXtBlock(**settings), lambda p, x, train: block(p, x), shape=(2, 4, 6, 4), maps=False)


def patches(p, name, x, side):
  """Rows and columns beyond the last whole patch are dropped."""
  height, width = x.shape[1] // side, x.shape[2] // side
  cut = x[:, : height * side, : width * side].reshape(len(x), height, side, width, side, -1)
  cut = cut.swapaxes(2, 3).reshape(len(x), height, width, -1)
  kernel = p[f'{name}/kernel']
  return cut @ kernel.reshape(-1, kernel.shape[-1]) + p[f'{name}/bias']


def test_a_network_equals_the_formula_where_patches_do_not_fill_the_image(rng):
  module = ConvNeXt(**NARROW, mlp_ratio=2.5, remat=True)
  images = rng.normal(size=IMAGES)
  x = jnp.asarray(images, jnp.float32)
  variables = variables_of(module, x)
  p = flat(variables)

  def stage(index, depth, x):
    for i in range(depth):
      start = f'stage_{index}_block_{i}/'
      x = block({k.removeprefix(start): v for k, v in p.items() if k.startswith(start)}, x)
    return x

  first = stage(0, 1, layer_norm(patches(p, 'stem', images, 4), p, 'stem_norm'))
  second = stage(1, 2, patches(p, 'downsample_1', layer_norm(first, p, 'downsample_1_norm'), 2))
  apply = jax.jit(lambda v, x: module.apply(v, x, train=False))
  assert str(jax.make_jaxpr(apply)(variables, x)).count('prevent_cse') == 3  # once a block
  assert p['stage_1_block_1/expand/kernel'].shape == (6, 15)
  got = apply(variables, x)
  assert second.shape == (2, 1, 2, 6)
  for ours, want in zip(got.stages, (first, second), strict=True):
    np.testing.assert_allclose(ours, want, atol=1e-5 * np.abs(want).max())
  np.testing.assert_array_equal(got.features, got.stages[1])
  assert got.vector is None


def shapes(model, size=IMAGES):
  """Variables and prediction of a model, as shapes."""
  images = jnp.zeros(size)
  return jax.eval_shape(
    lambda: (
      model.init(jax.random.key(0), images, train=False),
      model.init_with_output(jax.random.key(0), images, train=False)[0],
    )
  )


def narrow(**settings):
  return jattn.create_model('convnext_atto', num_classes=5, **(NARROW | settings))


def test_maps_of_blocks_and_inserts_and_the_names_of_their_mechanisms():
  model = narrow(attention={'name': 'squeeze_excite', 'reduction': 2}, pool='weighted_average')
  inserts = (('stage_0', SelfAttention), ('stage_1/block_0', SelfAttention))
  model = model.clone(backbone=model.backbone.clone(inserts=inserts))
  variables, prediction = shapes(model)
  assert [path.removeprefix('backbone/') for path in prediction.maps] == [
    'stage_0/block_0/attention/gate',
    'stage_0/inserted/weights',
    'stage_1/block_0/attention/gate',
    'stage_1/block_0/inserted/weights',
    'stage_1/block_1/attention/gate',
    'pool/weights',
  ]
  assert 'insert_stage_0' in variables['params']['backbone']
  name = model.timm_names['backbone/stage_1_block_0/attention/reduce'].name
  assert name == 'stages.1.blocks.0.fc1'
  assert shapes(narrow())[1].maps == {}


def test_names_in_timm_are_a_bijection_onto_the_leaves():
  model = narrow()
  variables, _ = shapes(model)
  names = model.timm_names
  leaves = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  assert set(names) == {path.rpartition('/')[0] for path in leaves}
  rng = np.random.default_rng(0)
  drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), variables)
  tensors = to_timm(model, drawn)
  expected = {
    'stem.0.weight': (4, 3, 4, 4),
    'stem.1.bias': (4,),
    'stages.1.downsample.0.weight': (4,),
    'stages.1.downsample.1.weight': (6, 4, 2, 2),
    'stages.1.blocks.1.conv_dw.weight': (6, 1, 7, 7),
    'stages.0.blocks.0.norm.bias': (4,),
    'stages.0.blocks.0.mlp.fc1.weight': (16, 4, 1, 1),
    'stages.1.blocks.0.mlp.fc2.bias': (6,),
    'stages.1.blocks.0.gamma': (6,),
    'head.norm.weight': (6,),
    'head.fc.weight': (5, 6),
  }
  assert {name: tensors[name].shape for name in expected} == expected
  assert len(tensors) == len(leaves) == 3 * 9 + 4 + 4 + 4
  jax.tree.map(np.testing.assert_array_equal, from_timm(model, tensors, variables), drawn)


def test_every_layer_starts_as_timms():
  model = narrow(depths=(1, 1), widths=(32, 48))

  def started():
    made = initial(model, jnp.zeros((1, 8, 8, 3)))['params']
    backbone, block = made['backbone'], made['backbone']['stage_0_block_0']
    layers = (backbone['stem'], backbone['downsample_1'], block['depthwise'], block['expand'])
    return (*layers, made['head']['logits']), block['scale']['gamma']

  layers, gamma = started()
  for layer in layers:
    np.testing.assert_allclose(np.std(layer['kernel']), 0.02, rtol=0.15)
    assert not layer['bias'].any()
  np.testing.assert_allclose(gamma, 1e-6)


def test_training_drops_the_last_branches_and_bfloat16_is_kept(rng):
  x = jnp.asarray(rng.normal(size=(8, 8, 8, 3)), jnp.float32)
  module = ConvNeXt(**NARROW, drop_path=0.5, init_values=None)
  variables = variables_of(module, x)
  for index in range(2):  # so that the last branch is one and the one before it is zero
    layer = variables['params'][f'stage_1_block_{index}']['reduce']
    layer |= {'kernel': jnp.zeros((24, 6)), 'bias': jnp.full(6, float(index))}

  @jax.jit
  def run(variables, x):
    rngs = {'dropout': jax.random.key(0)}
    trained = module.apply(variables, x, train=True, rngs=rngs)
    half = module.clone(dtype=jnp.bfloat16).apply(variables, x, train=False)
    return trained, module.apply(variables, x, train=False), half

  trained, still, half = run(variables, x)
  np.testing.assert_array_equal(trained.stages[0], still.stages[0])
  moved = np.asarray(trained.features - still.features)
  np.testing.assert_allclose(np.abs(moved), 1, atol=1e-5)  # half are dropped, the others doubled
  assert (moved > 0).any()
  assert (moved < 0).any()
  assert half.features.dtype == jnp.bfloat16


def test_settings_reach_their_places():
  settings = {'init_values': 0.5, 'activation': 'silu', 'drop_path': 0.2, 'kernel_size': 3}
  settings |= {'remat': True, 'initialization': 'flax', 'dtype': jnp.bfloat16}
  model = narrow(**settings, dropout=0.4)
  for key, value in (settings | NARROW).items():
    assert getattr(model.backbone, key) == value, key
  head = model.head
  assert (head.dropout, head.deviation, head.dtype, head.norm) == (0.4, None, jnp.bfloat16, True)
  assert (head.initialization, narrow().head.deviation) == ('flax', 0.02)
  layers = shapes(model)[0]['params']['backbone']
  assert layers['stage_0_block_0']['depthwise']['kernel'].shape == (3, 3, 1, 4)


@pytest.mark.parametrize(
  ('settings', 'size', 'message'),
  [
    ({}, (1, 7, 9, 3), 'images must be at least 8x8, got 7x9'),
    ({'depths': (1, 1, 1)}, IMAGES, r'self.depths=\(1, 1, 1\) and self.widths=\(4, 6\)'),
    ({'attention': 'token_learner'}, IMAGES, 'must keep the shape'),
    ({'activation': 'gleu'}, IMAGES, "did you mean 'gelu'"),
  ],
  ids=['size', 'depths', 'shape', 'activation'],
)
def test_bad_settings_are_named(settings, size, message):
  with pytest.raises(ValueError, match=message):
    shapes(narrow(**settings), size)
