"""CoAtNet: blocks and network against the formula, its two slots, sizes and starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.attention import SqueezeExcite, TokenLearner
from jattn.backbones import CoAtNet
from jattn.backbones.coatnet_blocks import MBConv, RelativeAttention, TransformerBlock
from jattn.cost import multiply_accumulates
from jattn.ops import resize_relative_geometric
from tests.layer_oracles import batch_norm, convolve, gelu, layer_norm, sigmoid, softmax
from tests.proof import draw, flat, prove, variables_of

NARROW = {'depths': (1, 2, 2, 1), 'widths': (8, 8, 8, 16), 'stem': (4, 8), 'head_width': 4}
GATE = functools.partial(SqueezeExcite, reduction=4, activation='silu')
MIXER = functools.partial(RelativeAttention, 4)


def silu(x):
  return x * sigmoid(x)


def linear(x, p, name):
  return x @ p[f'{name}/kernel'] + p.get(f'{name}/bias', 0)


def pool(x, strides):
  """Averages of squares; an odd last row or column has no part."""
  if strides == 1:
    return x
  x = x[:, : x.shape[1] // 2 * 2, : x.shape[2] // 2 * 2]
  return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4


def shortcut_of(x, p, strides):
  x = pool(x, strides)
  return linear(x, p, 'shortcut') if 'shortcut/kernel' in p else x


def mbconv(p, x, train, strides=1):
  y = linear(pool(batch_norm(x, p, 'norm_0', train), strides), p, 'conv_0')
  y = silu(batch_norm(y, p, 'norm_1', train))
  y = convolve(y, p['conv_1/kernel'], groups=y.shape[-1])
  y = silu(batch_norm(y, p, 'norm_2', train))
  maps = {}
  if 'attention/reduce/kernel' in p:
    z = silu(linear(y.mean((1, 2), keepdims=True), p, 'attention/reduce'))
    maps['attention/gate'] = sigmoid(linear(z, p, 'attention/expand'))
    y = y * maps['attention/gate']
  return shortcut_of(x, p, strides) + linear(y, p, 'conv_2'), maps


def attend(p, x, head_width=4):
  """By loops over heads and pairs of positions, each pair looking up its own bias."""
  batch, height, width, channels = x.shape
  heads = channels // head_width
  qkv = linear(x, p, 'attention/qkv').reshape(batch, -1, heads, 3, head_width)
  places = [(i, j) for i in range(height) for j in range(width)]
  table = p['attention/relative_bias']
  bias = np.array(
    [[table[a - c + height - 1, b - d + width - 1] for c, d in places] for a, b in places]
  )
  out = np.zeros((batch, height * width, heads, head_width))
  weights = np.zeros((batch, heads, height * width, height * width))
  for m in range(heads):
    q, k, v = (qkv[:, :, m, index] for index in range(3))
    scores = q @ k.transpose(0, 2, 1) / np.sqrt(head_width) + bias[..., m]
    weights[:, m] = softmax(scores)
    out[:, :, m] = weights[:, m] @ v
  return out.reshape(x.shape), {'attention/weights': weights}


def transformer(p, x, train, strides=1):
  del train
  y, maps = pool(layer_norm(x, p, 'norm_0'), strides), {}
  y, maps = attend(p, y)
  x = shortcut_of(x, p, strides) + linear(y, p, 'out')
  y = linear(gelu(linear(layer_norm(x, p, 'norm_1'), p, 'mlp_0')), p, 'mlp_1')
  return x + y, maps


def test_a_strided_convolutional_block_equals_the_formula():
  module = MBConv(10, strides=2, attention=GATE, expand=2)
  prove(module, functools.partial(mbconv, strides=2), train=True)


def test_a_strided_transformer_block_equals_the_formula():
  module = TransformerBlock(8, strides=2, attention=MIXER, expand=2)
  prove(module, functools.partial(transformer, strides=2))


@pytest.fixture(scope='module')
def narrow():
  """A network, images of an odd size, and its variables."""
  module = CoAtNet(**NARROW, gate=GATE)
  x = draw((2, 35, 40, 3))
  return module, x, variables_of(module, x)


def test_a_network_is_its_blocks_one_after_another(narrow):
  module, images, variables = narrow
  p = flat(variables)
  x = convolve(np.asarray(images, np.float64), p['stem_conv_0/kernel'], stride=2)
  x = convolve(silu(batch_norm(x, p, 'stem_norm', False)), p['stem_conv_1/kernel'])
  want, maps = [], {}
  for stage, depth in enumerate(NARROW['depths']):
    for index in range(depth):
      start = f'stage_{stage}_block_{index}/'
      inner = {k.removeprefix(start): v for k, v in p.items() if k.startswith(start)}
      block = mbconv if stage < 2 else transformer
      x, found = block(inner, x, False, strides=1 if index else 2)
      maps |= {f'stage_{stage}/block_{index}/{name}': value for name, value in found.items()}
    want.append(x)
  want[-1] = layer_norm(x, p, 'norm')
  got = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, images)
  assert list(got.maps) == list(maps)
  for name, weights in maps.items():
    np.testing.assert_allclose(got.maps[name].weights, weights, atol=1e-5)
  assert [stage.shape for stage in got.stages] == [
    (2, 9, 10, 8),
    (2, 4, 5, 8),
    (2, 2, 2, 8),
    (2, 1, 1, 16),
  ]
  for stage, reference in zip((*got.stages, got.features), (*want, want[-1]), strict=True):
    np.testing.assert_allclose(stage, reference, atol=1e-5 * np.abs(reference).max())


def test_at_another_size_the_biases_are_resized_as_timm_does():
  module, x, y = RelativeAttention(4), draw((1, 3, 4, 8)), draw((1, 5, 3, 8))
  variables = variables_of(module, x)
  table = variables['params']['relative_bias']
  assert table.shape == (5, 7, 2)
  resized = {**variables['params'], 'relative_bias': resize_relative_geometric(table, (5, 3))}
  assert resized['relative_bias'].shape == (9, 5, 2)
  apply = jax.jit(lambda p: module.apply({'params': p}, y, train=False).features)
  np.testing.assert_allclose(apply(variables['params']), apply(resized), atol=1e-6)


def test_the_named_model_has_timms_parameters_cost_and_maps():
  model = jattn.create_model('coatnet_nano_rw_224')
  x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  prediction, variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
  )
  assert sum(leaf.size for leaf in jax.tree.leaves(variables['params'])) == 15_141_244
  logits = multiply_accumulates(lambda v, x: model.apply(v, x, train=False).logits, variables, x)
  assert logits == 2_382_715_392
  gates = {f'backbone/stage_0/block_{i}/attention/gate': (1, 1, 1, 256) for i in range(3)}
  gates |= {
    f'backbone/stage_1/block_{i}/attention/gate': (1, 1, 1, 512 if i else 256) for i in range(4)
  }
  maps_2 = {
    f'backbone/stage_2/block_{i}/attention/weights': (1, 8 if i else 4, 196, 196) for i in range(6)
  }
  maps_3 = {
    f'backbone/stage_3/block_{i}/attention/weights': (1, 16 if i else 8, 49, 49) for i in range(3)
  }
  assert {name: m.weights.shape for name, m in prediction.maps.items()} == gates | maps_2 | maps_3


def made(size=(32, 32), dtype=jnp.float32, **settings):
  """Shapes of a narrow model's variables, and of its prediction."""
  model = jattn.create_model('coatnet_nano_rw_224', num_classes=3, **NARROW, **settings)
  images = jnp.zeros((1, *size, 3), dtype)
  prediction, variables = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), images, train=False)
  )
  return variables['params']['backbone'], prediction


def test_another_mechanism_takes_the_place_of_self_attention():
  params, prediction = made(attention={'name': 'self_attention', 'num_heads': 2}, pool='seq_pool')
  maps = {path.split('/', 1)[1]: m.weights.shape for path, m in prediction.maps.items()}
  assert maps == {
    'stage_0/block_0/attention/gate': (1, 1, 1, 32),
    'stage_1/block_0/attention/gate': (1, 1, 1, 32),
    'stage_1/block_1/attention/gate': (1, 1, 1, 32),
    'stage_2/block_0/attention/weights': (1, 2, 4, 4),
    'stage_2/block_1/attention/weights': (1, 2, 4, 4),
    'stage_3/block_0/attention/weights': (1, 2, 1, 1),
    'weights': (1, 1, 1, 1),
  }
  assert set(params['stage_2_block_0']['attention']) == {'query', 'key', 'value'}
  assert params['stage_3_block_0']['out']['kernel'].shape == (8, 16)


def test_the_control_arms_have_no_attention_and_no_gate():
  params, prediction = made(attention=None, gate=None)
  assert prediction.maps == {}
  assert set(params['stage_2_block_1']) == {'norm_1', 'mlp_0', 'mlp_1'}
  assert set(params['stage_3_block_0']) == {'shortcut', 'norm_1', 'mlp_0', 'mlp_1'}
  assert 'attention' not in params['stage_0_block_0']


def test_inserts_stand_after_blocks_and_stages():
  inserts = (('stage_1', GATE), ('stage_2/block_0', GATE))
  module = CoAtNet(**NARROW, inserts=inserts, remat=True)
  x = jnp.zeros((1, 32, 32, 3))
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
  apply = functools.partial(module.apply, train=False)
  program, attended = jax.make_jaxpr(apply, return_shape=True)(variables, x)
  assert 'prevent_cse' in str(program)  # the blocks are rematerialised
  assert list(attended.maps) == [
    'stage_1/inserted/gate',
    'stage_2/block_0/attention/weights',
    'stage_2/block_0/inserted/gate',
    'stage_2/block_1/attention/weights',
    'stage_3/block_0/attention/weights',
  ]


@pytest.mark.parametrize('block', [MBConv, functools.partial(TransformerBlock, attention=MIXER)])
def test_dropped_paths_leave_the_shortcut(block):
  module, x = block(12, drop_path=1 - 1e-7), draw()
  variables = variables_of(module, x)
  key = {'dropout': jax.random.key(0)}
  apply = functools.partial(module.apply, train=True, rngs=key, mutable=['batch_stats'])
  got, _ = jax.jit(apply)(variables, x)
  np.testing.assert_array_equal(got.features, x)


def test_settings_reach_the_blocks():
  module = CoAtNet(
    **NARROW, drop_path=0.4, norm='group', activation='relu', initialization='flax', expand=2
  )
  blocks = [module._block(*place, parent=None) for place in ((0, 0), (1, 0), (2, 1), (3, 0))]
  assert [block.drop_path for block in blocks] == [0.0, 0.08, 0.32, 0.4]
  assert [block.strides for block in blocks] == [2, 2, 1, 2]
  assert all((block.initialization, block.expand) == ('flax', 2) for block in blocks)
  assert [(block.norm, block.activation) for block in blocks[:2]] == [('group', 'relu')] * 2
  own = blocks[2].attention()
  assert (own.head_width, own.initialization) == (4, 'flax')


def test_bfloat16_computes_in_it_and_maps_stay_float32():
  module = CoAtNet(**NARROW, dtype=jnp.bfloat16, gate=functools.partial(GATE, dtype=jnp.bfloat16))
  x = jnp.ones((1, 32, 32, 3), jnp.bfloat16)
  attended = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, train=False))[0]
  assert {stage.dtype for stage in attended.stages} == {jnp.bfloat16.dtype}
  assert {m.weights.dtype for m in attended.maps.values()} == {jnp.float32.dtype}
  # The projection after it would hide that the blocks' own attention computes in float32.
  own = module._block(2, 0, parent=None).attention()
  assert own.dtype == jnp.bfloat16


def test_layers_start_as_timms():
  """Deviations of normal starts, and bounds of Glorot's uniform, sqrt(6 / (in + out))."""
  module = CoAtNet((1, 1), (64, 128), (32, 64), 'CT', gate=None)
  init = jax.jit(lambda: module.init(jax.random.key(0), jnp.zeros((1, 49, 49, 3)), train=False))
  p = flat({'params': init()['params']})
  for name, deviation in {
    'stem_conv_0': (2 / (9 * 32)) ** 0.5,
    'stage_0_block_0/conv_0': (2 / 256) ** 0.5,
    'stage_0_block_0/conv_1': (2 / 9) ** 0.5,
    'stage_0_block_0/conv_2': (2 / 64) ** 0.5,
  }.items():
    assert p[f'{name}/kernel'].std() == pytest.approx(deviation, rel=0.06), name
  for name, fans in {
    'attention/qkv': 64 + 3 * 64,
    'out': 64 + 128,
    'mlp_0': 128 + 512,
    'shortcut': 64 + 128,
  }.items():
    bound = np.abs(p[f'stage_1_block_0/{name}/kernel']).max() / (6 / fans) ** 0.5
    assert 0.99 < bound <= 1, name
  table = p['stage_1_block_0/attention/relative_bias']
  assert table.shape == (11, 11, 2)
  assert table.std() == pytest.approx(0.02, rel=0.1)


def refused(module, size=32):
  x = jnp.zeros((1, size, size, 3))
  jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'blocks': 'CT'}, r"self.depths=.* and self.blocks='CT' must be equally many"),
    ({'blocks': 'CCTM'}, "self.blocks='CCTM' must be of 'C' and 'T'"),
    ({'head_width': 3}, 'self.head_width=3 must divide C=8'),
    ({'inserts': (('stage_4', GATE),)}, "nothing is called 'stage_4'"),
    ({'attention': TokenLearner}, 'attention in a block must keep the shape'),
    ({'activation': 'swish'}, "no activation is called 'swish'"),
  ],
  ids=['stages', 'blocks', 'heads', 'inserts', 'shape', 'activation'],
)
def test_bad_settings_are_named(settings, message):
  with pytest.raises(ValueError, match=message):
    refused(CoAtNet(**{**NARROW, **settings}))


def test_images_that_are_too_small_and_other_strides_are_named():
  with pytest.raises(ValueError, match=r'images must be at least 31x31, got \(30, 30\)'):
    refused(CoAtNet(**NARROW), 30)
  assert made((31, 33))[1].logits.shape == (1, 3)
  with pytest.raises(ValueError, match='strides=3 must be 1 or 2'):
    refused(MBConv(8, strides=3))
