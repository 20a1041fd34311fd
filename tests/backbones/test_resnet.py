"""ResNets for ImageNet: blocks and whole networks against the formula, the names, the slots."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.attention import SelectiveKernel, SelfAttention, SplitAttention, SqueezeExcite
from jattn.backbones import ResidualBlock, ResNet
from tests.attention import test_selective_kernel, test_split_attention
from tests.layer_oracles import batch_norm, convolve, group_norm, sigmoid
from tests.proof import flat, initial, prove, variables_of


def windows(x, side, stride):
  """[B, H', W', C, squares]: what a window of ``side`` sees, one row of padding around, NaN."""
  above = 1 if side == 3 else 0
  below = (-(x.shape[1] + above) % stride + side, -(x.shape[2] + above) % stride + side)
  edges = ((0, 0), (above, below[0]), (above, below[1]), (0, 0))
  padded = np.pad(x, edges, constant_values=np.nan)
  rows, columns = (-(-size // stride) for size in x.shape[1:3])
  parts = [
    padded[:, i : i + rows * stride : stride, j : j + columns * stride : stride]
    for i in range(side)
    for j in range(side)
  ]
  return np.stack(parts, -1)


def part(p, name):
  return {key.removeprefix(name): value for key, value in p.items() if key.startswith(name)}


def normed(p, name, x, train, kind):
  return batch_norm(x, p, name, train) if kind == 'batch' else group_norm(x, p, name)


def oracle(module):
  """The block in float64, from its fields."""
  act = {'relu': lambda x: np.maximum(x, 0), 'silu': lambda x: x * sigmoid(x)}[module.activation]
  sides = [3, 3] if module.kind == 'basic' else [1, 3, 1]

  def compute(p, x, train):
    y, maps = x, {}
    for i, side in enumerate(sides):
      first = side == 3 and i == sides.index(3)
      average = first and module.strides > 1 and module.downsample == 'average'
      stride = module.strides if first and not average else 1
      if first and module.place == 'convolution':
        mechanism = module.attention().clone(strides=stride)
        of = {SelectiveKernel: test_selective_kernel, SplitAttention: test_split_attention}
        y, found = of[type(mechanism)].oracle(mechanism)(part(p, 'attention/'), y, train)
        maps = {f'attention/{name}': weights for name, weights in found.items()}
      else:
        groups = module.cardinality if first else 1
        y = convolve(y, p[f'conv_{i}/kernel'], stride=stride, groups=groups)
        y = normed(p, f'norm_{i}', y, train, module.norm)
        y = y if i == len(sides) - 1 else act(y)
      if average:
        y = np.nansum(windows(y, 3, module.strides), -1) / 9
    if 'attention/reduce/kernel' in p and module.place == 'end':
      hidden = y.mean((1, 2)) @ p['attention/reduce/kernel'] + p['attention/reduce/bias']
      logits = np.maximum(hidden, 0) @ p['attention/expand/kernel'] + p['attention/expand/bias']
      maps = {'attention/gate': sigmoid(logits)[:, None, None]}
      y = y * maps['attention/gate']
    if 'shortcut/kernel' in p:
      stride = module.strides
      if module.shortcut == 'average':
        x, stride = np.nanmean(windows(x, stride, stride), -1), 1
      x = convolve(x, p['shortcut/kernel'], stride=stride)
      x = normed(p, 'norm_shortcut', x, train, module.norm)
    return act(x + y), maps

  return compute


@pytest.mark.parametrize(
  ('settings', 'train'),
  [
    ({'features': 12, 'attention': lambda: SqueezeExcite(reduction=4)}, True),
    (
      {'kind': 'bottleneck', 'cardinality': 2, 'base_width': 50, 'shortcut': 'average'}
      | {'features': 6, 'strides': 2, 'activation': 'silu'},
      False,
    ),
  ],
  ids=['basic', 'bottleneck'],
)
def test_a_block_equals_the_formula(settings, train):
  module = ResidualBlock(**settings)
  prove(module, oracle(module), train=train)


NETWORKS = {
  'plain': ({'stem': 'plain'}, {}),
  'selective kernel': (
    {'stem': 'tiered', 'norm': 'group'},
    {'place': 'convolution', 'attention': lambda: SelectiveKernel(variant='timm', divisor=16)},
  ),
  'split attention': (
    {'stem': 'deep'},
    {'kind': 'bottleneck', 'shortcut': 'average', 'downsample': 'average'}
    | {'place': 'convolution', 'attention': lambda: SplitAttention(variant='timm')},
  ),
}


@pytest.mark.parametrize(('stem', 'block'), NETWORKS.values(), ids=NETWORKS)
def test_a_network_is_its_stem_and_its_blocks(stem, block):
  fields = {'block' if key == 'kind' else key: value for key, value in block.items()}
  depths = (1, 1) if block else (1, 2)
  module = ResNet(depths, (8, 16), stem_width=64, **stem, **fields)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 27, 18, 3)), jnp.float32)
  variables = variables_of(module, x, scale=0.1)
  p = flat(variables)
  want, kind = np.asarray(x, np.float64), stem.get('norm', 'batch')
  widths = {'plain': (64,), 'deep': (32, 32, 64), 'tiered': (24, 32, 64)}[stem['stem']]
  for i, width in enumerate(widths):
    want = convolve(want, p[f'stem_conv_{i}/kernel'], stride=1 if i else 2)
    want = np.maximum(normed(p, f'stem_norm_{i}', want, False, kind), 0)
    assert want.shape[-1] == width
  want = np.nanmax(windows(want, 3, 2), -1)
  stages = []
  for stage, depth in enumerate(depths):
    for i in range(depth):
      strides = 2 if stage and not i else 1
      one = ResidualBlock((8, 16)[stage], strides=strides, norm=kind, **block)
      want, _ = oracle(one)(part(p, f'stage_{stage}_block_{i}/'), want, False)
    stages.append(want)
  got = jax.jit(lambda v, x: module.apply(v, x, train=False).stages)(variables, x)
  assert [stage.shape[:3] for stage in got] == [(2, 7, 5), (2, 4, 3)]
  for ours, theirs in zip(got, stages, strict=True):
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def parameters_of(name, **settings):
  model = jattn.create_model(name, num_classes=3, widths=(8, 8), depths=(1, 1), **settings)
  images = jnp.zeros((1, 33, 47, 3))
  prediction, variables = jax.eval_shape(
    lambda: model.init_with_output(jax.random.key(0), images, train=False)
  )
  return prediction, variables['params']['backbone']


def test_attention_of_a_name_is_replaced_or_left_out():
  _, plain = parameters_of('resnet18', zero_last=False)
  prediction, without = parameters_of('skresnet18', attention=None)
  assert jax.tree.map(jnp.shape, without) == jax.tree.map(jnp.shape, plain)
  assert not prediction.maps
  prediction, other = parameters_of('skresnet18', attention='eca')
  assert set(other['stage_1_block_0']) == {*plain['stage_1_block_0'], 'attention'}
  assert prediction.maps['backbone/stage_1/block_0/attention/gate'].grid == (5, 6)
  # A mechanism that is a convolution stands where the 3x3 was, by its name or by its settings.
  for attention in ('selective_kernel', {'name': 'split_attention', 'radix': 1}):
    _, other = parameters_of('resnet26', attention=attention)
    assert 'conv_1' not in other['stage_0_block_0']
    assert {'attention', 'conv_0', 'conv_2'} < set(other['stage_0_block_0'])
  prediction, other = parameters_of('resnest14d', attention=None)
  assert other['stage_1_block_0']['conv_1']['kernel'].shape == (3, 3, 8, 8)


def test_settings_of_the_network_reach_its_blocks_and_its_parts():
  model = jattn.create_model(
    'resnet26',
    attention={'name': 'squeeze_excite', 'reduction': 2},
    pool='weighted_average',
    widths=(8, 8),
    depths=(1, 1),
    norm='group',
    dropout=0.5,
    dtype=jnp.bfloat16,
  )
  images = jnp.ones((2, 37, 29, 3))
  variables, prediction, stages = jax.eval_shape(
    lambda v: (v, model.apply(v, images, train=False), jattn.models.features(model, v, images)),
    jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False)),
  )
  assert set(variables) == {'params'}
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  assert [(s.shape, s.dtype) for s in stages] == [
    ((2, 10, 8, 32), jnp.bfloat16),
    ((2, 5, 4, 32), jnp.bfloat16),
  ]
  assert prediction.logits.dtype == jnp.float32
  assert list(prediction.maps) == [
    'backbone/stage_0/block_0/attention/gate',
    'backbone/stage_1/block_0/attention/gate',
    'pool/weights',
  ]
  assert {m.weights.dtype for m in prediction.maps.values()} == {jnp.dtype('float32')}
  assert model.head.dropout == 0.5


def test_a_block_of_bfloat16_returns_bfloat16():
  module = ResidualBlock(
    4,
    kind='bottleneck',
    strides=2,
    shortcut='average',
    downsample='average',
    attention=SqueezeExcite,
  )
  x = jnp.ones((2, 5, 6, 8), jnp.bfloat16)
  attended = jax.eval_shape(lambda v: module.apply(v, x, train=False), variables_of(module, x))
  assert attended.features.dtype == jnp.bfloat16
  assert attended.maps['attention/gate'].weights.dtype == jnp.float32


def test_where_a_network_starts():
  model = jattn.create_model('ecaresnet26t', num_classes=100, widths=(64,), depths=(1,))
  images = jnp.zeros((1, 32, 32, 3))

  @jax.jit
  def start():
    params = initial(model, images)['params']
    return params['backbone']['stage_0_block_0'], params['head']['logits']['kernel']

  block, head = start()
  kernel = block['conv_1']['kernel']
  np.testing.assert_allclose(kernel.std(), (2 / (9 * 64)) ** 0.5, rtol=0.05)
  assert np.abs(kernel).max() > 3 * kernel.std()
  for norm, scale in (('norm_1', 1), ('norm_2', 0)):
    np.testing.assert_array_equal(block[norm]['scale'], scale)
  assert 0.9 < np.abs(head).max() * 256**0.5 <= 1
  assert jattn.create_model('resnet18').backbone.zero_last
  assert not jattn.create_model('skresnet18').backbone.zero_last
  flax = jattn.create_model('resnet18', initialization='flax')
  assert (flax.backbone.initialization, flax.head.initialization) == ('flax', 'flax')


SMALL = {'depths': (1, 1), 'widths': (8, 8), 'stem_width': 8, 'norm': 'group'}


def test_the_last_blocks_branch_is_dropped_most_and_the_firsts_never():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 16, 3)), jnp.float32)
  module = ResNet(**SMALL, drop_path=0.999999)
  variables = variables_of(module, x)
  run = jax.jit(
    lambda v, x, train: module.apply(v, x, train=train, rngs={'dropout': jax.random.key(1)}).stages,
    static_argnums=2,
  )
  dropped = run(variables, x, True)
  kept = run(variables, x, False)
  params = {**variables['params']['stage_1_block_0']}
  params['norm_1'] = jax.tree.map(jnp.zeros_like, params['norm_1'])
  silent = run({'params': {**variables['params'], 'stage_1_block_0': params}}, x, False)
  np.testing.assert_allclose(dropped[0], kept[0], rtol=1e-6)
  np.testing.assert_allclose(dropped[1], silent[1], rtol=1e-5)
  assert np.abs(dropped[1] - kept[1]).max() > 0.1


def test_blocks_are_rematerialised_and_take_inserted_ones():
  images = jnp.zeros((1, 16, 16, 3))
  inserts = (('stage_0/block_0', SqueezeExcite), ('stage_1', SqueezeExcite))
  module = ResNet(**SMALL, remat=True, inserts=inserts)
  attended, variables = jax.eval_shape(
    lambda: module.init_with_output(jax.random.key(0), images, train=False)
  )
  assert list(attended.maps) == ['stage_0/block_0/inserted/gate', 'stage_1/inserted/gate']
  assert {'insert_stage_0_block_0', 'insert_stage_1'} < set(variables['params'])
  for remat in (True, False):
    run = module.clone(remat=remat).apply
    jaxpr = jax.make_jaxpr(lambda v, run=run: run(v, images, train=False).features)(variables)
    # A parameter of the operation, whose own name differs between versions of jax.
    assert str(jaxpr).count('prevent_cse') == (2 if remat else 0)


@pytest.mark.parametrize(
  ('module', 'message'),
  [
    (ResNet(depths=(1, 1)), r'self.depths=\(1, 1\) and self.widths=.* of the same length'),
    (ResNet(**SMALL, stem='wide'), "self.stem='wide' must be 'plain', 'deep' or 'tiered'"),
    (ResNet(**SMALL, block='wide'), "self.kind='wide' must be 'basic' or 'bottleneck'"),
    (ResNet(**SMALL, place='start'), "self.place='start' must be 'end' or 'convolution'"),
    (
      ResNet(**SMALL, shortcut='padding'),
      "self.shortcut='padding' must be 'projection', 'average' or 'pad'",
    ),
    (ResNet(**SMALL, downsample='max'), "self.downsample='max' must be 'convolution' or"),
    (ResNet(**SMALL, cardinality=2), 'self.cardinality=2 and self.base_width=64 must be 1 and 64'),
    (ResNet(**SMALL, base_width=4), 'self.cardinality=1 and self.base_width=4 must be 1 and 64'),
    (ResNet(**SMALL, inserts=(('stage_2', SqueezeExcite),)), "nothing is called 'stage_2'"),
    (ResNet(**SMALL, attention=lambda: SelfAttention(v_features=5)), 'SelfAttention made'),
    (ResNet(**SMALL, attention=SqueezeExcite, place='convolution'), 'SqueezeExcite has not'),
  ],
)
def test_bad_settings_are_named(module, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)), train=False))
