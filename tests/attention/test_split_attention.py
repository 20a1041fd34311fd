"""Split attention against the formula, channel by channel, and what its groups may see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import SplitAttention, SqueezeExcite
from tests.layer_oracles import batch_norm, convolve, sigmoid
from tests.proof import draw, prove, variables_of


def oracle(module):
  radix, groups = module.radix, module.cardinality

  def compute(p, x, train):
    u = convolve(x, p['conv/kernel'], stride=module.strides, groups=groups * radix)
    u = np.maximum(batch_norm(u, p, 'conv_norm', train), 0)
    features = u.shape[-1] // radix
    splits = [u[..., r * features : (r + 1) * features] for r in range(radix)]
    z = sum(splits).mean((1, 2), keepdims=True)
    hidden = convolve(z, p['reduce/kernel'], groups=groups) + p['reduce/bias']
    hidden = np.maximum(batch_norm(hidden, p, 'reduce_norm', train), 0)
    logits = convolve(hidden, p['expand/kernel'], groups=groups) + p['expand/bias']
    logits = logits[:, 0, 0]
    if radix == 1:
      gates = sigmoid(logits)[:, None, None]
      return u * gates, {'weights': gates}
    weights, share = np.zeros((len(x), radix, features)), features // groups
    for b in range(len(x)):
      for c in range(features):
        group, place = divmod(c, share)
        own = np.exp([logits[b, (group * radix + r) * share + place] for r in range(radix)])
        weights[b, :, c] = own / own.sum()
    out = sum(split * weights[:, None, None, r] for r, split in enumerate(splits))
    return out, {'weights': weights}

  return compute


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  'settings',
  [{'cardinality': 2, 'radix': 3}, {'features': 6, 'strides': 2, 'variant': 'timm'}, {'radix': 1}],
  ids=str,
)
def test_equals_the_formula(settings, train):
  module = SplitAttention(**settings)
  # Batch norm over as few as two pooled vectors would magnify their rounding.
  prove(module, oracle(module), train=train, shape=(6, 3, 5, 12))


@pytest.mark.parametrize(
  ('variant', 'widths'),
  [
    ('timm', {16: 32, 64: 32, 96: 48, 128: 64, 150: 72, 160: 80, 320: 160}),
    ('paper', {16: 32, 64: 32, 96: 48, 128: 64, 150: 75, 160: 80, 320: 160}),
  ],
)
def test_hidden_widths(variant, widths):
  for channels, hidden in widths.items():
    module, x = SplitAttention(variant=variant), jnp.zeros((1, 2, 2, channels))
    shapes = jax.eval_shape(lambda m=module, x=x: m.init(jax.random.key(0), x, train=False))
    assert shapes['params']['reduce']['kernel'].shape == (1, 1, channels, hidden)


def test_one_split_is_squeeze_and_excitation_of_the_convolution():
  module, x = SplitAttention(radix=1), draw()
  given = variables_of(module, x)
  given['params']['reduce_norm'] = {'scale': jnp.ones(32), 'bias': jnp.zeros(32)}
  given['batch_stats']['reduce_norm'] = {'mean': jnp.zeros(32), 'var': jnp.full(32, 1 - 1e-5)}
  p = jax.tree.map(np.asarray, given['params'])
  stats = {'mean': given['batch_stats']['conv_norm']['mean']}
  stats['var'] = given['batch_stats']['conv_norm']['var']
  flat = {f'n/{k}': np.asarray(v) for k, v in (stats | p['conv_norm']).items()}
  u = np.maximum(batch_norm(convolve(np.asarray(x), p['conv']['kernel']), flat, 'n', False), 0)
  excite = SqueezeExcite(reduction=12 / 32)
  layers = {name: {**p[name], 'kernel': p[name]['kernel'][0, 0]} for name in ('reduce', 'expand')}
  want = excite.apply({'params': layers}, jnp.asarray(u, jnp.float32), train=False)
  got = module.apply(given, x, train=False)
  np.testing.assert_allclose(got.features, want.features, atol=1e-5)
  np.testing.assert_allclose(got.maps['weights'].weights, want.maps['gate'].weights, atol=1e-6)


def test_one_number_on_all_splits_changes_nothing():
  module, x = SplitAttention(), draw()
  given = variables_of(module, x)
  moved = jax.tree.map(lambda leaf: leaf, given)
  moved['params']['expand']['bias'] += jnp.tile(draw((12,)), 2)
  features = [module.apply(v, x, train=False).features for v in (given, moved)]
  np.testing.assert_allclose(*features, atol=1e-6)


def test_groups_never_meet():
  """Channels 2, 3 of every four belong to group 1 (of splits 0, 1 and 2), as does output 6..11."""
  module, x = SplitAttention(radix=3, cardinality=2), draw()
  given = variables_of(module, x)
  noise = draw(seed=3) * jnp.asarray([0, 0, 1, 1] * 3, jnp.float32)[None, None, None]
  a, b = (np.asarray(module.apply(given, y, train=False).features) for y in (x, x + noise))
  np.testing.assert_array_equal(a[..., :6], b[..., :6])
  assert np.abs(a - b)[..., 6:].max() > 0.1


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'radix': 5}, 'radix=5 must divide C=12'),
    ({'features': 7, 'cardinality': 2}, 'cardinality=2 must divide features=7'),
    ({'kernel_size': 2}, 'kernel_size=2 must be odd'),
    ({'variant': 'official'}, "variant='official' must be"),
  ],
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    SplitAttention(**settings).init(jax.random.key(0), draw(), train=False)
