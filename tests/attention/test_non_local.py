"""The non-local block against the formula of each kind, and its start as the identity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import NonLocal
from tests.layer_oracles import batch_norm
from tests.proof import draw, initial, prove


def oracle(kind, scale=1.0):
  def compute(p, x, train):
    positions = x.shape[1] * x.shape[2]
    maps = np.zeros((len(x), 1, positions, positions))
    mixed = []
    for image, rows in zip(x, maps, strict=True):
      h = image.reshape(positions, -1)
      g = h @ p['value/kernel'] + p['value/bias']
      theta = phi = h
      if kind != 'gaussian':
        theta = h @ p['query/kernel'] + p['query/bias']
        phi = h @ p['key/kernel'] + p['key/bias']
      for i in range(positions):
        for j in range(positions):
          if kind == 'concatenation':
            f = max(0, p['score'][:, 0] @ np.concatenate([theta[i], phi[j]]))
          else:
            f = scale * theta[i] @ phi[j]
            f = f if kind == 'dot_product' else np.exp(f)
          rows[0, i, j] = f
        rows[0, i] /= rows[0, i].sum() if 'gaussian' in kind else positions
      mixed.append(rows[0] @ g @ p['out/kernel'] + p['out/bias'])
    out = batch_norm(np.reshape(mixed, x.shape), p, 'norm', train)
    return x + out, {'weights': maps} if 'gaussian' in kind else {}

  return compute


@pytest.mark.parametrize(
  ('kind', 'train'),
  [
    ('embedded_gaussian', False),
    ('embedded_gaussian', True),
    ('gaussian', True),
    ('dot_product', False),
    ('concatenation', False),
  ],
)
def test_equals_the_formula(kind, train):
  prove(NonLocal(kind), oracle(kind), train=train)


@pytest.mark.parametrize(('variant', 'width'), [('official', 4), ('timm', 12)])
def test_what_other_variants_scale_by(variant, width):
  prove(NonLocal(reduction=3, variant=variant), oracle('embedded_gaussian', scale=width**-0.5))


def test_hidden_widths():
  timm = {16: 8, 48: 8, 96: 16, 160: 24, 192: 24, 320: 40}
  for variant, widths in (('timm', timm), ('paper', {1: 1, 12: 6, 64: 32})):
    for channels, hidden in widths.items():
      module, x = NonLocal(variant=variant), jnp.zeros((1, 1, 1, channels))
      shapes = jax.eval_shape(lambda m=module, x=x: m.init(jax.random.key(0), x, train=False))
      assert shapes['params']['value']['kernel'].shape == (channels, hidden)


@pytest.mark.parametrize('kind', ['embedded_gaussian', 'concatenation'])
def test_starts_as_the_identity_with_a_gradient_in_the_norm_only(kind):
  module, x = NonLocal(kind, initialization='paper'), draw()
  variables = initial(module, x)

  @jax.jit
  def train(params):
    given = {**variables, 'params': params}
    features = module.apply(given, x, train=True, mutable=['batch_stats'])[0].features
    return (features * draw(seed=3)).sum(), features

  gradient, features = jax.grad(train, has_aux=True)(variables['params'])
  np.testing.assert_array_equal(features, x)
  evaluated = jax.jit(lambda: module.apply(variables, x, train=False).features)()
  np.testing.assert_array_equal(evaluated, x)
  norm = gradient.pop('norm')
  assert np.abs(norm['scale']).min() > 0
  assert np.abs(norm['bias']).min() > 0
  for leaf in jax.tree.leaves(gradient):
    np.testing.assert_array_equal(leaf, 0)


def test_the_dot_product_makes_no_table_of_pairs():
  x = draw((1, 3, 7, 4))

  def compiled(kind):
    module = NonLocal(kind)
    variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))
    apply = jax.jit(lambda v, x: module.apply(v, x, train=False).features)
    return apply.lower(variables, x).compile().as_text()

  assert '21,21]' in compiled('embedded_gaussian')
  assert '21,21]' not in compiled('dot_product')


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'kind': 'cosine'}, "kind='cosine' must be one of"),
    ({'variant': 'bat'}, "variant='bat' must be"),
    ({'variant': 'timm', 'kind': 'gaussian'}, "variant='timm' has .* not self.kind='gaussian'"),
  ],
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    NonLocal(**settings).init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)), train=False)
