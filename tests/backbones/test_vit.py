"""Vision transformers: against the formula, the class token, what may mix tokens, and all names."""

import types

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.attention import Residual, SelfAttention, SqueezeExcite, TokenLearner
from jattn.backbones import ViT, ViTBlock
from jattn.weights import from_timm, to_timm
from tests.layer_oracles import gelu, layer_norm, softmax
from tests.ops.test_resize import resize_axis
from tests.proof import flat, initial, prove, variables_of

NARROW = {'patch_size': 4, 'width': 12, 'depth': 2, 'num_heads': 3}
IMAGES = (2, 12, 8, 3)


def linear(p, name, x):
  return x @ p[f'{name}/kernel'] + p[f'{name}/bias']


def self_attention(p, x, heads):
  def project(name):
    return linear(p, name, x).reshape(*x.shape[:2], heads, -1)

  q, k, v = (project(f'attention/{name}') for name in ('query', 'key', 'value'))
  weights = softmax(np.einsum('bqmd,bkmd->bmqk', q, k) / np.sqrt(q.shape[-1]))
  out = np.einsum('bmqk,bkmd->bqmd', weights, v).reshape(x.shape)
  return linear(p, 'attention/out', out), weights


def block(p, x, *, heads, scaled=False):
  y, weights = self_attention(p, layer_norm(x, p, 'norm_0'), heads)
  x = x + (y * p['scale_0/gamma'] if scaled else y)
  y = linear(p, 'reduce', gelu(linear(p, 'expand', layer_norm(x, p, 'norm_1'))))
  return x + (y * p['scale_1/gamma'] if scaled else y), weights


def test_a_block_equals_the_formula():
  def oracle(p, x, train):
    out, weights = block(p, x, heads=3, scaled=True)
    return out, {'attention/weights': weights}

  module = ViTBlock(3, (3, 4), mlp_ratio=1.5, init_values=0.1)
  prove(module, oracle, shape=(2, 13, 12))


def embedded(p, images, side, grid):
  batch = len(images)
  patches = images.reshape(batch, grid[0], side, grid[1], side, 3).swapaxes(2, 3)
  kernel = p['embedding/kernel'].reshape(side * side * 3, -1)
  x = patches.reshape(batch, *grid, -1) @ kernel + p['embedding/bias']
  table = resize_axis(p['positions'], grid[0]).swapaxes(0, 1)
  return x + resize_axis(table, grid[1]).swapaxes(0, 1)


def test_a_network_equals_the_formula_at_a_grid_it_was_not_made_at():
  module = ViT(**NARROW)
  variables = variables_of(module, jnp.zeros((1, 8, 8, 3)))
  assert variables['params']['positions'].shape == (2, 2, 12)
  images = np.random.default_rng(0).normal(size=IMAGES)
  p = flat(variables)
  token = p['class_token'] + p['class_position']
  want = embedded(p, images, 4, (3, 2)).reshape(2, 6, 12)
  want = np.concatenate([np.broadcast_to(token, (2, 1, 12)), want], axis=1)
  for index in range(2):
    start = f'stage_0_block_{index}/'
    inner = {k.removeprefix(start): v for k, v in p.items() if k.startswith(start)}
    want, weights = block(inner, want, heads=3)
  want = layer_norm(want, p, 'norm')
  got = jax.jit(lambda v, x: module.apply(v, x, train=False))(
    variables, jnp.asarray(images, jnp.float32)
  )
  close(got.vector, want[:, 0])
  close(got.features, want[:, 1:].reshape(2, 3, 2, 12))
  close(got.stages[0], got.features)
  close(got.maps['stage_0/block_1/attention/weights'].weights, weights)


def close(got, want):
  assert got.shape == want.shape
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


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
  return jattn.create_model('vit_tiny_patch16_224', num_classes=5, **(NARROW | settings))


def test_maps_know_which_key_is_the_class_token():
  module = ViTBlock(1, (1, 2))
  x = jnp.ones((1, 3, 4))
  apply = jax.jit(lambda v: module.apply(v, x, train=False).maps['attention/weights'])
  found = apply(variables_of(module, x))
  assert (found.kind, found.grid) == ('position', (1, 2))
  assert found.keys.tolist() == [[-1, 0, 1]] * 3
  np.testing.assert_array_equal(found.dense(), found.weights[..., 1:])
  _, prediction = shapes(narrow())
  weights = [f'backbone/stage_0/block_{index}/attention/weights' for index in range(2)]
  assert list(prediction.maps) == weights
  assert prediction.maps[weights[0]].weights.shape == (2, 3, 7, 7)
  _, prediction = shapes(narrow(pool='weighted_average'))
  assert list(prediction.maps) == [*weights, 'pool/weights']
  assert prediction.maps[weights[0]].keys is None
  assert prediction.maps[weights[0]].weights.shape == (2, 3, 6, 6)


@pytest.mark.parametrize(
  ('settings', 'token', 'after'),
  [
    ({}, True, False),
    ({'pool': 'average'}, False, True),
    ({'pool': {'name': 'average_max', 'combine': 'mean'}, 'class_token': True}, True, True),
    ({'pool': 'max', 'norm_after': False}, False, False),
    ({'pool': 'weighted_average'}, False, False),
  ],
  ids=['token', 'average', 'average_max', 'max', 'weighted'],
)
def test_where_the_class_token_and_the_last_norm_are(settings, token, after):
  layers = shapes(narrow(**settings))[0]['params']
  assert ('class_token' in layers['backbone']) == ('class_position' in layers['backbone']) == token
  assert ('norm' in layers['head']) == after
  assert ('norm' in layers['backbone']) != after


def test_another_mechanism_mixes_the_grid_and_none_mixes_nothing(rng):
  layers, prediction = shapes(narrow(pool='average', attention='squeeze_excite'))
  block_1 = layers['params']['backbone']['stage_0_block_1']
  assert set(block_1['attention']) == {'reduce', 'expand'}
  assert 'norm_0' in block_1
  assert prediction.maps['backbone/stage_0/block_1/attention/gate'].weights.shape == (2, 1, 1, 12)

  module = ViT(**NARROW, attention=None, class_token=False)
  x = jnp.asarray(rng.normal(size=IMAGES), jnp.float32)
  variables = variables_of(module, x)
  assert set(variables['params']['stage_0_block_0']) == {'norm_1', 'expand', 'reduce'}
  apply = jax.jit(lambda v, x: module.apply(v, x, train=False).features)
  moved = apply(variables, x) - apply(variables, x.at[:, 4:8, :4].set(0.0))
  assert np.argwhere(np.abs(moved).max((0, 3))).tolist() == [[1, 0]]


def test_what_is_inserted_sees_the_grid_and_the_class_token_passes_by(rng):
  plain = ViT(**NARROW)
  inserts = (
    ('stage_0/block_0', lambda: Residual(SelfAttention())),
    ('stage_0', SqueezeExcite),
  )
  module = plain.clone(inserts=inserts[:1])
  x = jnp.asarray(rng.normal(size=IMAGES), jnp.float32)
  wider = variables_of(module, x)
  wider['params']['insert_stage_0_block_0']['gamma'] = jnp.zeros(12)
  layers = dict(wider['params'])
  layers.pop('insert_stage_0_block_0')

  @jax.jit
  def both(layers, wider, x):
    return (plain.apply({'params': layers}, x, train=False), module.apply(wider, x, train=False))

  before, after = both(layers, wider, x)
  np.testing.assert_array_equal(before.vector, after.vector)
  np.testing.assert_array_equal(before.features, after.features)
  path = 'stage_0/block_0/inserted/weights'
  assert after.maps[path].weights.shape == (2, 1, 6, 6)

  gated = jax.eval_shape(
    lambda: plain.clone(inserts=inserts).init_with_output(jax.random.key(0), x, train=False)[0]
  )
  assert gated.maps['stage_0/inserted/gate'].weights.shape == (2, 1, 1, 12)


def test_bfloat16_and_float32_maps():
  _, prediction = shapes(narrow(dtype=jnp.bfloat16, init_values=0.1))
  assert {m.weights.dtype for m in prediction.maps.values()} == {jnp.dtype('float32')}
  module = ViT(**NARROW, dtype=jnp.bfloat16, init_values=0.1)
  made = jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), jnp.zeros(IMAGES), train=False)
  )
  assert made[0].features.dtype == made[0].vector.dtype == jnp.bfloat16
  assert {leaf.dtype for leaf in jax.tree.leaves(made[1])} == {jnp.dtype('float32')}


def test_training_drops_whole_branches_and_remat_changes_nothing(rng):
  x = jnp.asarray(rng.normal(size=(8, 8, 8, 3)), jnp.float32)
  settings = NARROW | {'depth': 2, 'drop_path': 0.5}
  module = ViT(**settings)
  variables = variables_of(module, x)

  @jax.jit
  def run(variables, x):
    rngs = {'dropout': jax.random.key(0)}
    trained = [
      module.clone(remat=remat).apply(variables, x, train=True, rngs=rngs, mutable=[])[0]
      for remat in (False, True)
    ]
    return [out.vector for out in trained], module.apply(variables, x, train=False).vector

  assert str(jax.make_jaxpr(run)(variables, x)).count('prevent_cse') == 2  # once a block
  (plain, again), still = run(variables, x)
  np.testing.assert_allclose(plain, again, atol=1e-6)
  assert np.abs(plain - still).max() > 0.1
  # Two branches of the second block, each kept or not: more than one image kept neither or both.
  assert len({tuple(np.round(row, 3)) for row in np.asarray(plain - still)}) == 8


def test_every_layer_starts_as_timms():
  model = narrow(width=96, depth=1, init_values=0.3)

  def started():
    made = initial(model, jnp.zeros((1, 24, 24, 3)))['params']
    backbone, block = made['backbone'], made['backbone']['stage_0_block_0']
    linear = (block['attention']['query'], block['attention']['out'], block['reduce'])
    tables = [backbone[name] for name in ('positions', 'class_position', 'class_token')]
    scale = block['scale_0']['gamma']
    return (*linear, made['head']['logits']), tables, backbone['embedding'], scale

  linear, (positions, class_position, class_token), embedding, scale = started()
  for layer in linear:
    np.testing.assert_allclose(np.std(layer['kernel']), 0.02, rtol=0.1)
    assert not layer['bias'].any()
  np.testing.assert_allclose(np.std(positions), 0.02, rtol=0.05)
  np.testing.assert_allclose(np.std(class_position), 0.02, rtol=0.2)
  np.testing.assert_allclose(np.std(class_token), 1e-6, rtol=0.2)
  np.testing.assert_allclose(scale, 0.3)
  for leaf in embedding.values():  # as PyTorch's: uniform up to 1 / sqrt(48)
    assert 0.9 < np.abs(leaf).max() * 48**0.5 <= 1


def test_settings_reach_their_places():
  settings = {'mlp_ratio': 2.0, 'init_values': 0.5, 'activation': 'gelu_tanh', 'drop_path': 0.2}
  settings |= {'remat': True, 'initialization': 'flax', 'dtype': jnp.bfloat16}
  model = narrow(**settings, class_position=False, dropout=0.4)
  for key, value in (settings | NARROW).items():
    assert getattr(model.backbone, key) == value, key
  assert model.backbone.class_position is False
  assert (model.head.dropout, model.head.deviation, model.head.dtype) == (0.4, None, jnp.bfloat16)
  assert model.head.initialization == 'flax'
  assert narrow().backbone.attention == 'self'


@pytest.mark.parametrize(
  ('settings', 'size', 'message'),
  [
    ({'attention': 'eca'}, IMAGES, "attention='eca' has no place .* choose pool='average'"),
    ({'attention': None}, IMAGES, "attention=None has no place .* choose pool='average'"),
    (
      {'attention': 'eca', 'pool': 'average', 'class_token': True},
      IMAGES,
      'set class_token=False',
    ),
    ({'class_token': False}, IMAGES, 'class_token=False needs a pooling'),
    ({}, (1, 12, 10, 3), 'self.patch_size=4 must divide the images: 12x10'),
    ({'num_heads': 5}, IMAGES, 'self.num_heads=5 must divide C=12'),
    ({'activation': 'gleu'}, IMAGES, "did you mean 'gelu'"),
    ({'pool': 'average', 'attention': 'token_learner'}, IMAGES, 'must keep the shape'),
  ],
  ids=['eca', 'none', 'token', 'no pooling', 'size', 'heads', 'activation', 'shape'],
)
def test_what_is_illegal_is_told(settings, size, message):
  with pytest.raises(ValueError, match=message):
    shapes(narrow(**settings), size)


@pytest.mark.parametrize(
  ('module', 'message'),
  [
    (ViT(**NARROW, attention=SqueezeExcite), 'a class token needs self-attention'),
    (ViT(**NARROW, inserts=(('stage_1', SqueezeExcite),)), "nothing is called 'stage_1'"),
    (ViT(**NARROW, inserts=(('stage_0', lambda: TokenLearner(4)),)), "'stage_0' made"),
  ],
  ids=['mechanism', 'place', 'shape'],
)
def test_what_a_backbone_refuses(module, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros(IMAGES), train=False))


MAP_POOL = {'name': 'latent_attention_pool', 'num_heads': 2}
IN_AUGREG = {
  'cls': (1, 1, 12),
  'embedding/kernel': (4, 4, 3, 12),
  'embedding/bias': (12,),
  'Transformer/posembed_input/pos_embedding': (1, 7, 12),
  'Transformer/encoderblock_0/LayerNorm_0/scale': (12,),
  'Transformer/encoderblock_1/LayerNorm_2/bias': (12,),
  'Transformer/encoderblock_1/MultiHeadDotProductAttention_1/query/kernel': (12, 3, 4),
  'Transformer/encoderblock_1/MultiHeadDotProductAttention_1/value/bias': (3, 4),
  'Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/kernel': (3, 4, 12),
  'Transformer/encoderblock_1/MultiHeadDotProductAttention_1/out/bias': (12,),
  'Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel': (12, 48),
  'Transformer/encoderblock_0/MlpBlock_3/Dense_1/bias': (12,),
  'Transformer/encoder_norm/scale': (12,),
  'head/kernel': (12, 5),
}
IN_LOOP = {
  'cls': (1, 1, 12),
  'pos_embedding': (1, 6, 12),
  'Transformer/encoderblock_1/LayerNorm_1/scale': (12,),
  'Transformer/encoderblock_0/MultiHeadDotProductAttention_0/key/kernel': (12, 3, 4),
  'Transformer/encoderblock_1/MlpBlock_0/Dense_0/bias': (48,),
  'head/bias': (5,),
}
IN_SCAN = {
  'pos_embedding': (1, 6, 12),
  'Transformer/encoderblock/LayerNorm_0/scale': (2, 12),
  'Transformer/encoderblock/MultiHeadDotProductAttention_0/query/bias': (2, 3, 4),
  'Transformer/encoderblock/MultiHeadDotProductAttention_0/out/kernel': (2, 3, 4, 12),
  'Transformer/encoderblock/MlpBlock_0/Dense_1/kernel': (2, 48, 12),
  'MAPHead_0/probe': (1, 1, 12),
  'MAPHead_0/LayerNorm_0/bias': (12,),
  'MAPHead_0/MultiHeadDotProductAttention_0/value/kernel': (12, 2, 6),
  'MAPHead_0/MultiHeadDotProductAttention_0/out/kernel': (2, 6, 12),
  'MAPHead_0/MlpBlock_0/Dense_1/kernel': (48, 12),
}
IN_TIMM = {
  'cls_token': (1, 1, 12),
  'pos_embed': (1, 7, 12),
  'patch_embed.proj.weight': (12, 3, 4, 4),
  'blocks.1.norm2.weight': (12,),
  'blocks.1.attn.qkv.weight': (36, 12),
  'blocks.0.attn.proj.bias': (12,),
  'blocks.0.ls2.gamma': (12,),
  'blocks.0.mlp.fc1.weight': (48, 12),
  'norm.bias': (12,),
  'head.weight': (5, 12),
}


@pytest.mark.parametrize(
  ('style', 'settings', 'expected', 'count'),
  [
    ('timm', {'init_values': 0.1}, IN_TIMM, 2 * 14 + 8),
    ('timm', {'pool': 'average'}, {'fc_norm.weight': (12,), 'pos_embed': (1, 6, 12)}, 2 * 12 + 7),
    ('big_vision', {}, IN_AUGREG, 2 * 16 + 8),
    ('big_vision_loop', {'class_position': False}, IN_LOOP, 2 * 16 + 8),
    ('big_vision_scan', {'pool': MAP_POOL}, IN_SCAN, 16 + 7 + 15),
  ],
  ids=['timm', 'timm average', 'augreg', 'loop', 'scan'],
)
def test_names_elsewhere_are_a_bijection_onto_the_leaves(style, settings, expected, count):
  model = narrow(**settings)
  variables, _ = shapes(model)
  names = model.names(style)
  leaves = flax.traverse_util.flatten_dict(variables['params'], sep='/')
  assert set(names) == {path if path in names else path.rpartition('/')[0] for path in leaves}

  rng = np.random.default_rng(0)
  drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), variables)
  owner = types.SimpleNamespace(timm_names=names)
  tensors = to_timm(owner, drawn)
  assert len(tensors) == count
  assert {name: tensors[name].shape for name in expected} == expected
  jax.tree.map(np.testing.assert_array_equal, from_timm(owner, tensors, variables), drawn)
  assert sum(value.size for value in tensors.values()) == sum(leaf.size for leaf in leaves.values())


def test_a_mechanism_in_the_slot_brings_its_names():
  model = narrow(pool='average', attention='squeeze_excite')
  assert model.timm_names['backbone/stage_0_block_1/attention/reduce'].name == 'blocks.1.attn.fc1'
