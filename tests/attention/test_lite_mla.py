"""Lightweight multi-scale attention against the explicit table of ReLU similarities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import LiteMla
from tests.layer_oracles import batch_norm, convolve
from tests.proof import draw, prove, variables_of


def oracle(head_width, scales, eps):
  def compute(p, x, train):
    batch, height, width, _ = x.shape
    positions = height * width
    first = x @ p['qkv/kernel']
    total = first.shape[-1]
    parts = [first]
    for index in range(len(scales)):
      seen = convolve(first, p[f'window_{index}/kernel'], groups=total)
      parts.append(convolve(seen, p[f'mix_{index}/kernel'], groups=total // head_width))
    maps, outs = [], []
    for part in parts:
      tokens = part.reshape(batch, positions, -1, 3 * head_width)
      for head in range(tokens.shape[2]):
        q, k, v = np.split(tokens[:, :, head], 3, axis=-1)
        table = np.zeros((batch, positions, positions + 1))
        for b, i in np.ndindex(batch, positions):
          for j in range(positions):
            table[b, i, j] = np.maximum(q[b, i], 0) @ np.maximum(k[b, j], 0)
          table[b, i, -1] = eps
          table[b, i] /= table[b, i].sum()
        maps.append(table)
        outs.append(table[..., :-1] @ v)
    out = np.concatenate(outs, -1).reshape(batch, height, width, -1) @ p['out/kernel']
    return batch_norm(out, p, 'norm', train), {'weights': np.stack(maps, 1)}

  return compute


@pytest.mark.parametrize(
  ('settings', 'train'),
  [
    ({}, False),
    ({'num_heads': 2, 'head_width': 3, 'scales': (3, 5), 'out_features': 7, 'eps': 0.1}, True),
    ({'head_width': 4, 'scales': (), 'eps': 0.01}, False),
  ],
  ids=str,
)
def test_equals_the_formula(settings, train):
  module = LiteMla(**settings)
  prove(module, oracle(module.head_width, module.scales, module.eps), train=train)


def test_the_number_of_heads():
  for channels, heads in {8: 1, 12: 1, 24: 3}.items():
    x = jnp.zeros((1, 2, 2, channels))
    shapes = jax.eval_shape(lambda x=x: LiteMla().init(jax.random.key(0), x, train=False))
    assert shapes['params']['qkv']['kernel'].shape == (channels, 3 * heads * 8)


def test_a_query_without_positive_features_looks_outside():
  module, x = LiteMla(num_heads=1, head_width=2, scales=()), draw()
  variables = variables_of(module, x)
  kernel = variables['params']['qkv']['kernel']
  variables['params']['qkv']['kernel'] = kernel.at[:, :2].set(0)
  returned = jax.jit(lambda v: module.apply(v, x, train=False))(variables)
  attention_map = returned.maps['weights']
  np.testing.assert_array_equal(attention_map.weights[..., -1], 1)
  np.testing.assert_array_equal(attention_map.dense(), 0)
  assert attention_map.dense().shape == (2, 1, 15, 15)
  np.testing.assert_allclose(returned.features, returned.features[:1, :1, :1] + 0 * x, atol=1e-6)


def test_the_table_of_pairs_costs_nothing_unless_it_is_read():
  module, x = LiteMla(head_width=2), draw((1, 3, 7, 4))
  variables = jax.eval_shape(lambda: module.init(jax.random.key(0), x, train=False))

  def compiled(read):
    apply = jax.jit(lambda v, x: read(module.apply(v, x, train=False)))
    return apply.lower(variables, x).compile().as_text()

  assert '21,22]' in compiled(lambda attended: attended)
  features = compiled(lambda attended: attended.features)
  assert '21,22]' not in features
  assert '21,21]' not in features


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'head_width': 8}, 'head_width=8 must not exceed C=4'),
    ({'head_width': 2, 'scales': (3, 4)}, 'scales=.3, 4. must be odd'),
    ({'head_width': 2, 'eps': 0.0}, 'eps=0.0 must be positive'),
  ],
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    LiteMla(**settings).init(jax.random.key(0), jnp.zeros((1, 2, 2, 4)), train=False)
