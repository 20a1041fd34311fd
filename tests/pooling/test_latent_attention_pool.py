"""Pooling by a learned query (MAP) against the formula, with either GELU."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.pooling import LatentAttentionPool
from tests import oracles
from tests.proof import draw, prove, variables_of


def exact_gelu(t):
  return t / 2 * (1 + np.vectorize(math.erf)(t / math.sqrt(2)))


def tanh_gelu(t):
  return t / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (t + 0.044715 * t**3)))


def latent_attention_pool(num_heads, gelu):
  def oracle(p, x, train):
    del train
    out, maps = [], []
    for image in x:
      tokens = image.reshape(-1, x.shape[-1])
      pairs = (('query', p['latent'][0]), ('key', tokens), ('value', tokens))
      q, k, v = (
        (t @ p[f'{name}/kernel'] + p[f'{name}/bias']).reshape(len(t), num_heads, -1)
        for name, t in pairs
      )
      maps.append(oracles.attention_weights(q, k).reshape(num_heads, *x.shape[1:3]))
      y = oracles.attend(q, k, v).reshape(-1) @ p['out/kernel'] + p['out/bias']
      z = (y - y.mean()) / np.sqrt(y.var() + 1e-6) * p['norm/scale'] + p['norm/bias']
      z = gelu(z @ p['expand/kernel'] + p['expand/bias'])
      out.append(y + z @ p['reduce/kernel'] + p['reduce/bias'])
    return np.array(out), {'weights': np.array(maps)}

  return oracle


@pytest.mark.parametrize(
  ('num_heads', 'variant', 'gelu'), [(3, 'big_vision', tanh_gelu), (2, 'timm', exact_gelu)]
)
def test_equals_the_formula(num_heads, variant, gelu):
  module = LatentAttentionPool(num_heads, variant=variant)
  prove(module, latent_attention_pool(num_heads, gelu))


def test_the_variants_differ_by_their_gelu():
  x = draw()
  modules = [LatentAttentionPool(3, variant=variant) for variant in ('big_vision', 'timm')]
  variables = variables_of(modules[0], x)
  apply = [jax.jit(module.apply, static_argnames='train') for module in modules]
  ours, theirs = (f(variables, x, train=False).vector for f in apply)
  assert 1e-5 < np.abs(ours - theirs).max() < 1e-2


def test_masked_positions_get_zero_and_cannot_move_the_vector():
  module, x = LatentAttentionPool(3), draw()
  variables = variables_of(module, x)
  mask = jnp.ones((2, 3, 5), bool).at[0, 1:, 2:].set(False)
  apply = jax.jit(module.apply, static_argnames='train')
  pooled = apply(variables, x, train=False, mask=mask)
  weights = np.asarray(pooled.maps['weights'].weights)
  assert (weights.transpose(0, 2, 3, 1)[~np.asarray(mask)] == 0).all()
  np.testing.assert_allclose(weights.sum((2, 3)), 1, atol=1e-6)
  noisy = jnp.where(mask[..., None], x, 50.0)
  again = apply(variables, noisy, train=False, mask=mask)
  np.testing.assert_array_equal(again.vector, pooled.vector)


def test_the_latent_starts_as_its_variant_says():
  x = jnp.zeros((1, 2, 2, 512))
  bound = (6 / 513) ** 0.5  # of Xavier's uniform distribution, from one input to 512 outputs
  for variant, std in (('big_vision', bound / 3**0.5), ('timm', 512**-0.5)):
    module = LatentAttentionPool(mlp_ratio=0.1, variant=variant)
    init = jax.jit(lambda x, m=module: m.init(jax.random.key(0), x, train=False))
    start = init(x)['params']['latent']
    np.testing.assert_allclose(start.std(), std, rtol=0.1)
    assert (np.abs(start).max() <= bound) == (variant == 'big_vision')


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 5}, 'self.num_heads=5 must divide C=12'),
    ({'num_heads': 3, 'variant': 'paper'}, "self.variant='paper' must be"),
  ],
)
def test_bad_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    LatentAttentionPool(**settings).init(jax.random.key(0), draw(), train=False)
