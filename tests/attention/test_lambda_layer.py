"""The lambda layer against the formula, and against the attention that it never writes down."""

import jax
import numpy as np
import pytest

from jattn.attention import LambdaLayer, create_attention
from tests.layer_oracles import batch_norm
from tests.local_oracles import run
from tests.proof import draw, prove, variables_of


def oracle(module):
  heads, head, reach = module.num_heads, module.head_features, module.kernel_size // 2

  def formula(p, x, train):
    batch, height, width, channels = x.shape
    packed = x @ p['query_key_value/kernel']
    q, k, v = np.split(packed, [heads * head, (heads + 1) * head], axis=-1)
    q, v = batch_norm(q, p, 'query_norm', train), batch_norm(v, p, 'value_norm', train)
    out = np.zeros(x.shape)
    for b in range(batch):
      exponentials = np.exp(k[b] - k[b].max(axis=(0, 1)))
      context = exponentials / exponentials.sum(axis=(0, 1))
      for i, j in np.ndindex(height, width):
        table = np.zeros((head, channels // heads))
        for a, c in np.ndindex(height, width):
          key = context[a, c].copy()
          if max(abs(a - i), abs(c - j)) <= reach:
            key += p['position/kernel'][a - i + reach, c - j + reach, 0, 0]
          table += np.outer(key, v[b, a, c])
        if module.variant == 'timm':
          table += p['position/bias'][:, None]
        out[b, i, j] = (q[b, i, j].reshape(heads, head) @ table).ravel()
    return out

  return formula


@pytest.mark.parametrize('train', [False, True])
@pytest.mark.parametrize(
  'settings',
  [
    {'num_heads': 2, 'head_features': 5, 'kernel_size': 3},
    {'num_heads': 3, 'head_features': 4, 'kernel_size': 7, 'variant': 'timm'},
  ],
  ids=str,
)
def test_equals_the_formula(settings, train):
  module = LambdaLayer(**settings)
  prove(module, oracle(module), train=train)


def test_it_has_no_map():
  module = create_attention('lambda', num_heads=2, head_features=3, kernel_size=3)
  assert run(module, variables_of(module, draw()), draw()).maps == {}


def test_beyond_its_reach_positions_matter_by_content_alone():
  """Two distant positions change places: the rest sees the same content, in other places."""
  module = LambdaLayer(num_heads=2, head_features=3, kernel_size=3)
  x = draw((1, 1, 9, 4))
  variables = variables_of(module, x)
  before = run(module, variables, x).features
  turned = x[:, :, np.array([8, 1, 2, 3, 4, 5, 6, 7, 0])]
  after = run(module, variables, turned).features
  np.testing.assert_allclose(before[:, :, 2:7], after[:, :, 2:7], atol=1e-6)
  assert np.abs(before[:, :, 1] - after[:, :, 1]).max() > 1e-3


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 5}, 'num_heads=5 must divide C=12'),
    ({'kernel_size': 4}, 'kernel_size=4 must be odd'),
    ({'variant': 'author'}, "variant='author' must be 'paper' or 'timm'"),
  ],
  ids=str,
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    LambdaLayer(**settings).init(jax.random.key(0), draw(), train=False)
