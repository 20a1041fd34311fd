"""ResNets for small images: against the formula, and the slot for attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.attention import SelfAttention, SqueezeExcite
from jattn.backbones import ResidualBlock, ResNetCifar
from tests.layer_oracles import batch_norm, convolve, group_norm
from tests.proof import flat, initial, prove, variables_of


def normed(p, name, x, train, kind):
  return batch_norm(x, p, name, train) if kind == 'batch' else group_norm(x, p, name)


def block(p, x, train, *, strides=1, kind='batch'):
  y = normed(p, 'norm_0', convolve(x, p['conv_0/kernel'], stride=strides), train, kind)
  y = normed(p, 'norm_1', convolve(np.maximum(y, 0), p['conv_1/kernel']), train, kind)
  if 'attention/reduce/kernel' in p:
    hidden = y.mean((1, 2)) @ p['attention/reduce/kernel'] + p['attention/reduce/bias']
    logits = np.maximum(hidden, 0) @ p['attention/expand/kernel'] + p['attention/expand/bias']
    y = y / (1 + np.exp(-logits))[:, None, None]
  if 'shortcut/kernel' in p:
    x = normed(p, 'norm_shortcut', convolve(x, p['shortcut/kernel'], stride=strides), train, kind)
  elif y.shape != x.shape:
    before = (y.shape[-1] - x.shape[-1]) // 2
    wide = np.zeros(y.shape)
    wide[..., before : before + x.shape[-1]] = x[:, ::strides, ::strides]
    x = wide
  return np.maximum(x + y, 0)


@pytest.mark.parametrize(
  ('settings', 'train'),
  [
    ({'features': 12, 'attention': lambda: SqueezeExcite(reduction=4)}, False),
    ({'features': 15, 'strides': 2}, True),
    ({'features': 16, 'strides': 2, 'shortcut': 'projection', 'norm': 'group'}, False),
  ],
  ids=['same', 'pad', 'projection'],
)
def test_a_block_equals_the_formula(settings, train):
  kind, strides = settings.get('norm', 'batch'), settings.get('strides', 1)
  prove(
    ResidualBlock(**{'shortcut': 'pad', **settings}),
    lambda p, x, train: block(p, x, train, strides=strides, kind=kind),
    train=train,
    maps=False,
  )


def test_a_network_is_its_blocks_one_after_another():
  module = ResNetCifar(8, widths=(4, 6, 8))
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 9, 7, 3)), jnp.float32)
  variables = variables_of(module, x)
  p = flat(variables)
  want = batch_norm(convolve(np.asarray(x, np.float64), p['conv/kernel']), p, 'norm', False)
  want = np.maximum(want, 0)
  for stage in range(3):
    start = f'stage_{stage}_block_0/'
    inner = {k.removeprefix(start): v for k, v in p.items() if k.startswith(start)}
    want = block(inner, want, False, strides=2 if stage else 1)
  got = jax.jit(lambda v, x: module.apply(v, x, train=False).features)(variables, x)
  assert got.shape == (2, 3, 2, 8)
  np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(want).max())


def test_maps_come_back_under_the_path_of_their_block():
  attention = {'name': 'squeeze_excite', 'reduction': 4}
  model = jattn.create_model(
    'resnet20', num_classes=10, attention=attention, pool='weighted_average', widths=(4, 6, 8)
  )
  variables, prediction = jax.eval_shape(
    lambda: (
      model.init(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False),
      model.init_with_output(jax.random.key(0), jnp.zeros((2, 32, 32, 3)), train=False)[0],
    )
  )
  paths = [f'backbone/stage_{s}/block_{b}/attention/gate' for s in range(3) for b in range(3)]
  assert list(prediction.maps) == [*paths, 'pool/weights']
  assert prediction.maps[paths[-1]].weights.shape == (2, 1, 1, 8)
  assert 'attention' in variables['params']['backbone']['stage_2_block_1']


def test_zero_last_starts_as_the_shortcut():
  module = ResidualBlock(12, zero_last=True)
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, 5, 12)), jnp.float32)
  variables = initial(module, x)
  out = module.apply(variables, x, train=False).features
  np.testing.assert_array_equal(out, np.maximum(x, 0))


def test_settings_of_the_network_are_those_of_its_blocks():
  x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)), jnp.float32)
  module = ResNetCifar(
    8, (8, 8, 16), norm='group', shortcut='projection', zero_last=True, initialization='torch'
  )
  variables = initial(module, x)
  assert set(variables) == {'params'}
  layers = variables['params']
  assert not layers['stage_1_block_0']['norm_1']['scale'].any()
  added = set(layers['stage_1_block_0']) - set(layers['stage_0_block_0'])
  assert added == {'shortcut', 'norm_shortcut'}
  for layer, inputs in ((layers['conv'], 27), (layers['stage_2_block_0']['conv_1'], 144)):
    assert 0.9 < np.abs(layer['kernel']).max() * inputs**0.5 <= 1


def test_the_networks_compute_and_return_bfloat16():
  module, x = ResNetCifar(8, (4, 4, 4), dtype=jnp.bfloat16), jnp.ones((1, 8, 8, 3), jnp.bfloat16)
  features = jax.eval_shape(lambda: module.init_with_output(jax.random.key(0), x, train=False))[0]
  assert features.features.dtype == jnp.bfloat16


def test_defaults_are_the_papers():
  plain = ResNetCifar()
  assert (plain.depth, plain.widths, plain.norm) == (20, (16, 32, 64), 'batch')
  assert (plain.shortcut, plain.zero_last, plain.initialization) == ('pad', False, 'paper')


@pytest.mark.parametrize(
  ('module', 'message'),
  [
    (ResNetCifar(21), r'self.depth=21 must be 6n \+ 2'),
    (ResNetCifar(2), r'self.depth=2 must be 6n \+ 2'),
    (ResidualBlock(12, attention=lambda: SelfAttention(v_features=5)), 'SelfAttention made'),
    (ResidualBlock(13, shortcut='none'), "shortcut='none' must be"),
    (ResidualBlock(12, norm='instance'), "norm='instance' must be"),
  ],
  ids=['depth', 'no block', 'shape', 'shortcut', 'norm'],
)
def test_bad_settings_are_named(module, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(lambda: module.init(jax.random.key(0), jnp.zeros((1, 8, 8, 12)), train=False))
