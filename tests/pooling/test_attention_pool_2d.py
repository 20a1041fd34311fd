"""CLIP's attention pooling against the formula with all its queries, at other grids too."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.pooling import AttentionPool2d
from tests import oracles
from tests.proof import draw, prove, variables_of


def cubic(inputs, outputs):
  """[outputs, inputs]: Keys's cubic kernel (a = -1/2), widened where it shrinks."""
  rows, stretch = [], max(1, inputs / outputs)
  for i in range(outputs):
    t = np.abs(np.arange(inputs) - ((i + 0.5) * inputs / outputs - 0.5)) / stretch
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    rows.append(np.where(t <= 1, near, np.where(t < 2, far, 0)))
  return np.array(rows) / np.sum(rows, axis=1, keepdims=True)


def turned(k, height, width, reference):
  """Keys [N, D] as complex pairs, each turned by its row (first half) or its column."""
  pairs, quarter = (k[:, ::2] + 1j * k[:, 1::2]).reshape(height, width, -1), k.shape[1] // 4
  for h, w, j in np.ndindex(height, width, quarter):
    frequency = 10000 ** (-j / quarter)
    pairs[h, w, j] *= np.exp(1j * frequency * h * reference[0] / height)
    pairs[h, w, quarter + j] *= np.exp(1j * frequency * w * reference[1] / width)
  pairs = pairs.reshape(height * width, -1)
  return np.stack([pairs.real, pairs.imag], axis=-1).reshape(k.shape)


def attention_pool_2d(num_heads, grid, rotary):
  def oracle(p, x, train):
    del train
    _, height, width, channels = x.shape
    out, maps = [], []
    for image in x.reshape(len(x), -1, channels):
      tokens = np.concatenate([image.mean(0)[None], image])
      if not rotary:
        plane = p['table'][1:].reshape(*grid, channels)
        plane = np.einsum('hr,ws,rsc->hwc', cubic(grid[0], height), cubic(grid[1], width), plane)
        tokens = tokens + np.concatenate([p['table'][:1], plane.reshape(-1, channels)])
      names = ('query', 'key', 'value')
      q, k, v = (tokens @ p[f'{n}/kernel'] + p.get(f'{n}/bias', 0) for n in names)
      pooled, image_maps = [], []
      for head in np.split(np.arange(channels), num_heads):
        keys = k[:, head].copy()
        if rotary:
          keys[1:] = turned(keys[1:], height, width, grid)
        a = oracles.softmax(keys @ q[0, head] / np.sqrt(len(head)))
        pooled.append(a @ v[:, head])
        image_maps.append((a[1:] + a[0] / (height * width)).reshape(height, width))
      out.append(np.concatenate(pooled) @ p['out/kernel'] + p['out/bias'])
      maps.append(image_maps)
    return np.array(out), {'weights': np.array(maps)}

  return oracle


@pytest.mark.parametrize(
  ('num_heads', 'grid', 'positions', 'settings'),
  [
    (3, (3, 5), 'learned', {}),
    (2, (4, 3), 'learned', {'out_features': 7, 'use_bias': False}),
    (3, (4, 2), 'rotary', {'out_features': 7}),
  ],
)
def test_equals_the_formula(num_heads, grid, positions, settings):
  module = AttentionPool2d(num_heads, grid=grid, positions=positions, **settings)
  prove(module, attention_pool_2d(num_heads, grid, positions == 'rotary'))


def test_masked_positions_get_zero_and_cannot_move_the_vector():
  module, x = AttentionPool2d(3), draw()
  variables = variables_of(module, x)
  mask = jnp.ones((2, 3, 5), bool).at[0, 1:, 2:].set(False).at[1].set(False)
  apply = jax.jit(module.apply, static_argnames='train')
  pooled = apply(variables, x, train=False, mask=mask)
  weights = np.asarray(pooled.maps['weights'].weights)
  assert not weights[:, 0][~np.asarray(mask)].any()
  np.testing.assert_allclose(weights.sum((2, 3))[0], 1, atol=1e-6)
  assert np.isfinite(pooled.vector).all()
  noisy = jnp.where(mask[..., None], x, 50.0)
  again = apply(variables, noisy, train=False, mask=mask)
  np.testing.assert_array_equal(again.vector, pooled.vector)


def test_only_rotary_keys_feel_their_bias():
  x = draw()
  for positions, feels in (('learned', False), ('rotary', True)):
    module = AttentionPool2d(3, positions=positions)

    def loss(v, m=module):
      return (m.apply(v, x, train=False).vector * draw((2, 12), 3)).sum()

    gradient = jax.jit(jax.grad(loss))(variables_of(module, x))['params']['key']['bias']
    assert (np.abs(gradient).max() > 1e-4) == feels


def test_the_table_starts_with_the_spread_of_a_token():
  x = jnp.zeros((1, 2, 2, 256))
  init = jax.jit(lambda x: AttentionPool2d().init(jax.random.key(0), x, train=False))
  table = init(x)['params']['table']
  assert table.shape == (50, 256)
  np.testing.assert_allclose(table.std(), 1 / 16, rtol=0.02)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 5}, 'self.num_heads=5 must divide C=12'),
    ({'num_heads': 2, 'positions': 'rotary'}, 'width=6 must be a multiple of 4'),
    ({'num_heads': 2, 'positions': 'fixed'}, "self.positions='fixed' must be"),
  ],
)
def test_bad_settings_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    AttentionPool2d(**settings).init(jax.random.key(0), draw(), train=False)
