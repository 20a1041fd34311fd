"""The compact convolutional transformer against the formula, its positions, slot and starts."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.attention import SqueezeExcite, TokenLearner
from jattn.backbones import CCT
from jattn.backbones.cct import CompactAttention, CompactBlock
from jattn.cost import multiply_accumulates
from tests.layer_oracles import convolve, gelu, layer_norm, softmax
from tests.proof import draw, flat, prove, variables_of

NARROW = {'depth': 2, 'width': 8, 'num_heads': 2, 'mlp_ratio': 1.5, 'stem': (6,)}


def linear(x, p, name):
  return x @ p[f'{name}/kernel'] + p.get(f'{name}/bias', 0)


def max_pool(x):
  """3x3 with stride 2, one row and column of nothing around."""
  batch, height, width, channels = x.shape
  padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
  out = np.zeros((batch, (height + 1) // 2, (width + 1) // 2, channels))
  for i, j in np.ndindex(out.shape[1:3]):
    out[:, i, j] = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3].max((1, 2))
  return out


def attend(p, x, heads):
  tokens = x.reshape(len(x), -1, x.shape[-1])
  q, k, v = (
    np.split(linear(tokens, p, f'attention/{name}'), heads, axis=-1)
    for name in ('query', 'key', 'value')
  )
  head = x.shape[-1] // heads
  weights = [softmax(a @ b.transpose(0, 2, 1) / np.sqrt(head)) for a, b in zip(q, k, strict=True)]
  out = np.concatenate([a @ b for a, b in zip(weights, v, strict=True)], axis=-1)
  return linear(out.reshape(x.shape), p, 'attention/out'), np.stack(weights, axis=1)


def block(p, x, train, *, heads=2):
  del train
  y, weights = attend(p, layer_norm(x, p, 'norm_0', epsilon=1e-5), heads)
  x = layer_norm(x + y, p, 'norm_1', epsilon=1e-5)
  x = x + linear(gelu(linear(x, p, 'expand')), p, 'reduce')
  return x, {'attention/weights': weights}


def inside(p, path):
  """The parameters under ``path``."""
  return {k.removeprefix(path): v for k, v in p.items() if k.startswith(path)}


def backbone(p, x):
  for index in range(2):
    x = max_pool(np.maximum(convolve(x, p[f'conv_{index}/kernel']), 0))
  x, maps = x + p['positions'], {}
  for index in range(2):
    x, found = block(inside(p, f'stage_0_block_{index}/'), x, False)
    maps |= {f'stage_0/block_{index}/{name}': weights for name, weights in found.items()}
  return layer_norm(x, p, 'norm', epsilon=1e-5), maps


def test_a_block_equals_the_formula():
  prove(CompactBlock(functools.partial(CompactAttention, 2), mlp_ratio=1.5), block)


@pytest.mark.parametrize(('dtype', 'tolerance'), [('float32', 1e-5), ('float64', 1e-12)])
def test_the_whole_network_equals_the_formula(dtype, tolerance):
  with jax.enable_x64(dtype == 'float64'):
    model = jattn.create_model('cct_2_3x2_32', num_classes=5, **NARROW)
    x = draw((2, 9, 12, 3), dtype=dtype)
    variables = variables_of(model, x)
    got = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, x)
    p = flat(variables)
    features, maps = backbone(inside(p, 'backbone/'), np.asarray(x, np.float64))
    maps = {f'backbone/{name}': weights for name, weights in maps.items()}
    tokens = features.reshape(2, -1, 8)
    alpha = softmax(linear(tokens, p, 'pool/score')[..., 0])
    maps['pool/weights'] = alpha.reshape(2, 1, 3, 3)
    want = linear((alpha[..., None] * tokens).sum(1), p, 'head/logits')
    assert list(got.maps) == list(maps)
    for name, weights in maps.items():
      np.testing.assert_allclose(got.maps[name].weights, weights, atol=tolerance)
    np.testing.assert_allclose(got.logits, want, atol=tolerance * np.abs(want).max())


# By hand from the paper: convolutions, positions, blocks (norms, attention, perceptron), norm,
# score and classifier at 10 classes.
PARAMETERS = {
  'cct_2_3x2_32': 9 * 3 * 64
  + 9 * 64 * 128
  + 64 * 128
  + 2 * (2 * 256 + 4 * 128**2 + 128 + 2 * 128 * 128 + 128 + 128)
  + 256
  + 129
  + 1290,
  'cct_7_3x1_32': 9 * 3 * 256
  + 256 * 256
  + 7 * (2 * 512 + 4 * 256**2 + 256 + 2 * 256 * 512 + 512 + 256)
  + 512
  + 257
  + 2570,
}


@pytest.mark.parametrize(
  ('name', 'parameters', 'published', 'blocks', 'tokens', 'width'),
  [
    ('cct_2_3x2_32', 283_723, 0.033e9, 2, 64, 128),
    ('cct_7_3x1_32', 3_760_139, 0.947e9, 7, 256, 256),
  ],
)
def test_the_named_models_have_the_papers_numbers(
  name, parameters, published, blocks, tokens, width
):
  model = jattn.create_model(name, num_classes=10)
  x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  prediction, variables = jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False), x
  )
  found = sum(leaf.size for leaf in jax.tree.leaves(variables))
  assert found == parameters == PARAMETERS[name]
  cost = multiply_accumulates(lambda v, x: model.apply(v, x, train=False).logits, variables, x)
  with_maps = blocks * 2 * tokens**2 * width  # q k^T and A v, which the paper does not count
  assert abs(cost - with_maps - published) < 0.01 * published
  side, heads = round(tokens**0.5), width // 64
  maps = {
    f'backbone/stage_0/block_{index}/attention/weights': (1, heads, tokens, tokens)
    for index in range(blocks)
  }
  assert {path: m.weights.shape for path, m in prediction.maps.items()} == {
    **maps,
    'pool/weights': (1, 1, side, side),
  }
  assert {m.kind for m in prediction.maps.values()} == {'position', 'pool'}
  assert (model.backbone.drop_path, model.backbone.attention_dropout) == (0.1, 0.1)


def test_at_another_size_positions_are_interpolated_linearly():
  """As PyTorch's bilinear: the middle of a new cell lies between the middles of two old ones."""
  module = CCT(depth=0, width=4)
  variables = variables_of(module, jnp.zeros((1, 10, 4, 3)))
  table = np.asarray(variables['params']['positions'], np.float64)
  assert table.shape == (5, 2, 4)

  def resized(old, new):
    mix = np.zeros((new, old))
    for i in range(new):
      place = min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
      low = min(int(place), max(old - 2, 0))
      mix[i, low] += 1 - (place - low)
      mix[i, min(low + 1, old - 1)] += place - low
    return mix

  x = jnp.zeros((1, 6, 8, 3))  # the tokens are zero, so that the sum is the positions
  got = jax.jit(lambda v, x: module.apply(v, x, train=False).features)(variables, x)
  want = np.einsum('ij,kl,jlc->ikc', resized(5, 3), resized(2, 4), table)
  p = flat(variables)
  np.testing.assert_allclose(got[0], layer_norm(want, p, 'norm', epsilon=1e-5), atol=1e-5)


def test_positions_are_sines_and_cosines_or_nothing():
  x = jnp.zeros((1, 4, 6, 3))

  def features(positions):
    module = CCT(depth=0, width=6, positions=positions)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    assert 'positions' not in variables['params']
    variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
    return np.asarray(module.apply(variables, x, train=False).features)

  assert (features('none') == 1).all()  # the bias of the norm of nothing
  rates = [10000 ** (-i / 6) for i in (0, 2, 4)]
  want = [[f(p * rate) for rate in rates for f in (np.sin, np.cos)] for p in range(6)]
  ones = {'norm/scale': np.ones(6), 'norm/bias': np.ones(6)}
  want = layer_norm(np.reshape(want, (1, 2, 3, 6)), ones, 'norm', epsilon=1e-5)
  np.testing.assert_allclose(features('sinusoidal'), want, atol=1e-5)


def test_a_dropped_weight_is_missing_and_the_others_are_doubled():
  """Two equal keys of value one: each of the weights, 1/2, becomes 0 or 1; the map shows 1/2."""
  module, x = CompactAttention(1, dropout=0.5), jnp.ones((500, 1, 2, 1))
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
  variables = jax.tree.map(lambda leaf: jnp.full(leaf.shape, float(leaf.ndim == 2)), variables)
  apply = functools.partial(module.apply, train=True, rngs={'dropout': jax.random.key(0)})
  got = jax.jit(apply)(variables, x)
  values, counts = np.unique(got.features, return_counts=True)
  assert values.tolist() == [0, 1, 2]
  np.testing.assert_allclose(counts / 1000, [0.25, 0.5, 0.25], atol=0.06)
  assert (got.maps['weights'].weights == 0.5).all()


def test_dropped_paths_leave_the_second_norm():
  module, x = CompactBlock(drop_path=1 - 1e-7), draw()
  variables = variables_of(module, x)
  apply = functools.partial(module.apply, train=True, rngs={'dropout': jax.random.key(0)})
  got = jax.jit(apply)(variables, x).features
  want = layer_norm(np.asarray(x, np.float64), flat(variables), 'norm_1', epsilon=1e-5)
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_settings_reach_the_blocks():
  """Paths dropped for certain are branches that add nothing; the first block drops none."""
  x = draw((2, 8, 8, 3))
  module = CCT(**NARROW, drop_path=1 - 1e-7, attention_dropout=0.0)
  variables = variables_of(module, x)
  without = jax.tree.map(jnp.asarray, dict(variables['params']))
  for layer in (('attention', 'out'), ('reduce',)):
    branch = without['stage_0_block_1']
    for name in layer:
      branch = branch[name]
    branch |= jax.tree.map(jnp.zeros_like, dict(branch))

  def features(module, params, train):
    key = {'dropout': jax.random.key(0)}
    return module.apply({'params': params}, x, train=train, rngs=key).features

  dropped = features(module, variables['params'], True)
  np.testing.assert_allclose(dropped, features(module, without, False), atol=1e-5)
  dropping = module.clone(attention_dropout=0.5)
  assert np.abs(features(dropping, variables['params'], True) - dropped).max() > 1e-2


def made(name='cct_2_3x2_32', **settings):
  """Shapes of a narrow model's variables, and of its prediction."""
  model = jattn.create_model(name, num_classes=3, **{**NARROW, **settings})
  images = jnp.zeros((1, 12, 8, 3))
  prediction, variables = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), images, train=False)
  )
  return variables['params'], prediction


def test_another_mechanism_takes_the_place_of_self_attention():
  params, prediction = made(attention='squeeze_excite', pool='average')
  assert {path: m.weights.shape for path, m in prediction.maps.items()} == {
    f'backbone/stage_0/block_{index}/attention/gate': (1, 1, 1, 8) for index in range(2)
  }
  assert set(params) == {'backbone', 'head'}


def test_the_control_arm_has_no_attention():
  params, prediction = made(attention=None)
  assert list(prediction.maps) == ['pool/weights']
  assert set(params['backbone']['stage_0_block_0']) == {'norm_1', 'expand', 'reduce'}


def test_inserts_stand_after_blocks_and_before_the_last_norm():
  def make():
    return SqueezeExcite(reduction=2)

  module = CCT(**NARROW, inserts=(('stage_0/block_0', make), ('stage_0', make)), remat=True)
  x = draw((1, 8, 8, 3))
  variables = variables_of(module, x)
  apply = functools.partial(module.apply, train=False)
  program, attended = jax.make_jaxpr(apply, return_shape=True)(variables, x)
  assert 'prevent_cse' in str(program)  # the blocks are rematerialised
  assert list(attended.maps) == [
    'stage_0/block_0/attention/weights',
    'stage_0/block_0/inserted/gate',
    'stage_0/block_1/attention/weights',
    'stage_0/inserted/gate',
  ]
  assert [stage.shape for stage in attended.stages] == [attended.features.shape] == [(1, 2, 2, 8)]


def test_bfloat16_computes_in_it_and_maps_stay_float32():
  module, x = CCT(**NARROW, dtype=jnp.bfloat16), jnp.ones((1, 8, 8, 3), jnp.bfloat16)
  attended = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, train=False))[0]
  assert attended.features.dtype == jnp.bfloat16
  assert {m.weights.dtype for m in attended.maps.values()} == {jnp.float32.dtype}
  block = CompactBlock(functools.partial(CompactAttention, 1, dtype=jnp.bfloat16))
  branch = block.clone(dtype=jnp.bfloat16)
  x = jnp.ones((1, 2, 2, 4), jnp.bfloat16)
  shape = jax.eval_shape(lambda: branch.init_with_output(jax.random.key(0), x, train=False))[0]
  assert shape.features.dtype == jnp.bfloat16


def test_layers_start_as_the_authors():
  model = jattn.create_model('cct_2_3x2_32', num_classes=100)
  init = jax.jit(lambda: model.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), train=False))
  p = flat(init())
  block = 'backbone/stage_0_block_1'
  for name, deviation in {
    'backbone/conv_0/kernel': (2 / 27) ** 0.5,
    'backbone/conv_1/kernel': (2 / (9 * 64)) ** 0.5,
    'backbone/positions': 0.2,
    f'{block}/attention/query/kernel': 0.02,
    f'{block}/attention/out/kernel': 0.02,
    f'{block}/expand/kernel': 0.02,
    f'{block}/reduce/kernel': 0.02,
    'head/logits/kernel': 0.02,
  }.items():
    assert p[name].std() == pytest.approx(deviation, rel=0.06), name
  assert not any(value.any() for name, value in p.items() if name.endswith('/bias'))


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 3}, 'self.num_heads=3 must divide C=8'),
    ({'positions': 'sine'}, "self.positions='sine' must be 'learned', 'sinusoidal' or 'none'"),
    ({'attention': TokenLearner}, 'attention in a block must keep the shape'),
    ({'inserts': (('stage_1', TokenLearner),)}, "nothing is called 'stage_1'"),
    ({'activation': 'glu'}, "no activation is called 'glu'"),
  ],
  ids=['heads', 'positions', 'shape', 'inserts', 'activation'],
)
def test_bad_settings_are_named(settings, message):
  module, x = CCT(**{**NARROW, **settings}), jnp.zeros((1, 8, 8, 3))
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
