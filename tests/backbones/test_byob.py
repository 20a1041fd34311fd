"""Bottlenecks with attention in the middle: against the formula, and what stands where."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import models
from jattn.attention import BottleneckAttention, HaloAttention, SelfAttention, SqueezeExcite
from jattn.backbones import ByobNet, HybridBottleneck
from tests.attention import test_bottleneck, test_halo
from tests.layer_oracles import batch_norm, convolve, sigmoid
from tests.proof import flat, initial, prove, variables_of


def act(x, name):
  return np.maximum(x, 0) if name == 'relu' else x * sigmoid(x)


def under(p, path):
  return {k.removeprefix(path): v for k, v in p.items() if k.startswith(path)}


def average(x, side):
  """Of squares; at the border of what there is of them."""
  if side == 1:
    return x
  rows, columns = (range(0, size, side) for size in x.shape[1:3])
  return np.stack(
    [np.stack([x[:, i : i + side, j : j + side].mean((1, 2)) for j in columns], 1) for i in rows], 1
  )


def excite(p, x):
  hidden = np.maximum(x.mean((1, 2)) @ p['reduce/kernel'] + p['reduce/bias'], 0)
  return x * sigmoid(hidden @ p['expand/kernel'] + p['expand/bias'])[:, None, None]


def block(p, x, train, *, strides=1, groups=1, mix=None, gate=None, name='relu', averaged=True):
  """``mix(x)`` in the place of the convolution, ``gate(x)`` after it."""

  def unit(x, i, **settings):
    return batch_norm(convolve(x, p[f'conv_{i}/kernel'], **settings), p, f'norm_{i}', train)

  y = act(unit(x, 0), name)
  if mix is None:
    y = act(unit(y, 1, stride=strides, groups=groups), name)
  else:
    y = average(mix(under(p, 'attention/'), y), strides if averaged else 1)
    y = act(batch_norm(y, p, 'norm_1', train), name)
  if gate is not None:
    y = gate(under(p, 'attention/'), y)
  if 'shortcut/kernel' in p:
    x = convolve(x, p['shortcut/kernel'], stride=strides)
    x = batch_norm(x, p, 'norm_shortcut', train)
  return act(x + unit(y, 2), name)


def of_mechanism(oracle):
  """The output of a mechanism's own oracle, which gives its maps too."""
  return lambda p, x: oracle(p, x, False)[0]


BOTTLENECK = BottleneckAttention(2, 'timm')
HALO = HaloAttention(2, block_size=2, halo=1, variant='timm')


@pytest.mark.parametrize(
  ('settings', 'given', 'train'),
  [
    (
      {
        'kind': 'g',
        'group_size': 2,
        'attention': lambda: SqueezeExcite(reduction=2),
        'activation': 'silu',
      },
      {'groups': 2, 'gate': excite, 'name': 'silu'},
      True,
    ),
    (
      {'kind': 'a', 'attention': BOTTLENECK.clone},
      {'mix': of_mechanism(test_bottleneck.oracle(BOTTLENECK))},
      False,
    ),
    (
      {'kind': 'a', 'attention': HALO.clone},
      {'mix': of_mechanism(test_halo.oracle(HALO.clone(strides=2))), 'averaged': False},
      False,
    ),
  ],
  ids=['gate', 'average', 'strided queries'],
)
def test_a_block_equals_the_formula(settings, given, train):
  prove(
    HybridBottleneck(5, 4, strides=2, **settings),
    lambda p, x, train: block(p, x, train, strides=2, **given),
    train=train,
    maps=False,
  )


@pytest.mark.parametrize('pooled', [True, False], ids=['maximum', 'convolutions'])
def test_a_network_is_its_stem_its_blocks_and_its_last_convolution(pooled):
  module = ByobNet(
    ('c', 'g'), (4, 10), stem=(2, 3, 4), stem_pool=pooled, last=None if pooled else 7
  )
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 13, 18, 3)), jnp.float32)
  variables = variables_of(module, x)
  p = flat(variables)

  def unit(x, name, stride=1):
    y = convolve(x, p[f'{name}_conv/kernel'], stride=stride)
    return np.maximum(batch_norm(y, p, f'{name}_norm', False), 0)

  want = np.asarray(x, np.float64)
  for index in range(3):
    want = unit(want, f'stem_{index}', 2 if index == 0 or (index == 2 and not pooled) else 1)
  if pooled:
    wide = np.pad(want, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    shifted = [wide[:, i : i + 7, j : j + 9] for i in range(3) for j in range(3)]
    want = np.max(shifted, axis=0)[:, ::2, ::2]
  want = first = block(under(p, 'stage_0_block_0/'), want, False)
  want = second = block(under(p, 'stage_1_block_0/'), want, False, strides=2)
  want = want if pooled else unit(want, 'last')
  got = jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, x)
  assert [stage.shape for stage in got.stages] == [(2, 4, 5, 4), (2, 2, 3, 10)]
  for found, wanted in ((got.features, want), *zip(got.stages, (first, second), strict=True)):
    np.testing.assert_allclose(found, wanted, atol=1e-5 * np.abs(wanted).max())


def shapes(module, size):
  """Variables and what comes back, as shapes alone."""
  returned, variables = jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), jnp.zeros((1, *size, 3)), train=False)
  )
  return variables, returned


@pytest.mark.parametrize('attention', ['bottleneck', 'halo'])
def test_any_size_of_images(attention):
  model = narrow({'name': attention, 'num_heads': 2})
  variables, _ = shapes(model, (32, 32))
  stages = jax.eval_shape(lambda v: models.features(model, v, jnp.zeros((1, 37, 50, 3))), variables)
  assert [stage.shape[1:3] for stage in stages] == [(10, 13), (5, 7)]


def narrow(attention, blocks=('c', 'a')):
  return models.byobnet(5, blocks=blocks, widths=(8, 32), stem=(4,), attention=attention)


def test_the_mechanism_can_be_any_that_keeps_the_shape_or_none():
  path = 'backbone/stage_1/block_0/attention/weights'
  variables, found = shapes(narrow('self_attention'), (32, 32))
  block = variables['params']['backbone']['stage_1_block_0']
  assert 'query' in block['attention']
  assert 'conv_1' not in block
  assert found.maps[path].weights.shape == (1, 1, 64, 64)  # before the average

  variables, found = shapes(narrow('split_attention'), (32, 32))
  kernel = variables['params']['backbone']['stage_1_block_0']['attention']['conv']['kernel']
  assert kernel.shape == (3, 3, 4, 16)
  assert found.maps[path].grid == (4, 4)  # it strides by itself

  for kind in ('a', 'g'):
    variables, found = shapes(narrow(None, ('c', kind)), (32, 32))
    block = variables['params']['backbone']['stage_1_block_0']
    assert found.maps == {}
    assert 'attention' not in block
    assert block['conv_1']['kernel'].shape == (3, 3, 8, 8)


def test_what_is_inserted_stands_after_its_block_and_its_stage():
  inserts = (('stage_0/block_1', SqueezeExcite), ('stage_1', SelfAttention))
  module = ByobNet(('cc', 'c'), (8, 8), stem=(2,), inserts=inserts)
  _, found = shapes(module, (16, 16))
  assert list(found.maps) == ['stage_0/block_1/inserted/gate', 'stage_1/inserted/weights']


def test_bfloat16_is_computed_in_and_maps_are_float32():
  model = models.byobnet(
    5,
    blocks=('a',),
    widths=(32,),
    stem=(4,),
    attention={'name': 'halo', 'num_heads': 2},
    dtype=jnp.bfloat16,
  )
  variables, found = shapes(model.backbone, (16, 16))
  assert found.features.dtype == jnp.bfloat16
  assert {m.weights.dtype for m in found.maps.values()} == {jnp.dtype('float32')}
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_where_a_block_starts():
  module = HybridBottleneck(128, 32, group_size=4, zero_last=True)
  x = jnp.ones((1, 2, 2, 8))
  layers = initial(module, x)['params']
  assert not layers['norm_2']['scale'].any()
  # Variance 2 / fan_out, and of a convolution in groups the outputs of one of them count.
  for name, fan_out in (('conv_0', 32), ('conv_1', 9 * 4), ('conv_2', 128)):
    kernel = np.asarray(layers[name]['kernel'])
    np.testing.assert_allclose(kernel.std(), np.sqrt(2 / fan_out), rtol=0.15)


def test_branches_are_dropped_and_blocks_made_again():
  module = ByobNet(('c', 'c'), (8, 8), stem=(4,), drop_path=0.999, zero_last=False, norm='layer')
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
  variables = variables_of(module, x)
  key = {'dropout': jax.random.key(0)}

  def both(variables, module):
    trained = module.apply(variables, x, train=True, rngs=key).stages
    return trained, module.apply(variables, x, train=False).stages

  program = jax.jit(lambda v: both(v, module.clone(remat=True))).trace(variables)
  # A parameter of the operation, whose own name differs between versions of jax.
  assert 'prevent_cse' in str(program.jaxpr)
  trained, evaluated = program.lower().compile()(variables)
  np.testing.assert_allclose(trained[0], evaluated[0], atol=1e-6)  # the first block's rate is zero
  assert np.abs(trained[1] - evaluated[1]).max() > 1e-3


@pytest.mark.parametrize(
  ('module', 'message'),
  [
    (HybridBottleneck(8, 4, kind='b'), "self.kind='b' must be 'c', 'g' or 'a'"),
    (HybridBottleneck(8, 4, group_size=3), 'self.group_size=3 must divide self.inner=4'),
    (
      HybridBottleneck(8, 4, kind='a', attention=lambda: SelfAttention(v_features=5)),
      r'must make \(1, 8, 8, 4\) of \(1, 8, 8, 4\); SelfAttention made \(1, 8, 8, 5\)',
    ),
    (
      HybridBottleneck(8, 4, kind='a', attention=lambda: HaloAttention(2, strides=2)),
      r'must make \(1, 8, 8, 4\) of .* HaloAttention made \(1, 4, 4, 4\)',
    ),
    (
      HybridBottleneck(8, 4, kind='g', attention=lambda: SelfAttention(v_features=5)),
      'must keep the shape; SelfAttention made',
    ),
    (ByobNet(('cc', 'c'), (8,)), r"self.blocks=\('cc', 'c'\) and .* of the same length"),
    (HybridBottleneck(8, 4, activation='selu'), "no activation is called 'selu'"),
  ],
  ids=['kind', 'groups', 'shape', 'strides', 'gate', 'lengths', 'activation'],
)
def test_bad_settings_are_named(module, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 3)), train=False))
