"""Halo attention against the formula, global attention, and the unused rows of its tables."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import BottleneckAttention, HaloAttention
from tests.local_oracles import attend, hold, run
from tests.proof import draw, variables_of


def oracle(module):
  """One query at a time, over a grid that reaches far enough outside."""
  side, halo, heads, stride = module.block_size, module.halo, module.num_heads, module.strides
  timm = module.variant == 'timm'

  def row(key, query):
    """The row of a table for two places on an axis."""
    if not timm:  # the smallest difference is that of the halo's first key and the last query
      return key - query + side + halo - stride
    start = query // side * side
    place = (query - start) // stride
    return (key - start + halo) - place + side + 2 * halo - 1

  def formula(p, x, train):
    batch, height, width, channels = x.shape
    head = channels // heads
    rows, columns = -(-height // stride), -(-width // stride)
    out = np.zeros((batch, rows, columns, channels))
    maps = np.zeros((batch, heads, rows * columns, height * width))
    for n, down, right in np.ndindex(batch, rows, columns):
      i, j = down * stride, right * stride
      top, left = i // side * side - halo, j // side * side - halo
      seen = [(top + a, left + b) for a, b in np.ndindex((side + 2 * halo,) * 2)]
      inside = np.array([0 <= a < height and 0 <= b < width for a, b in seen])
      both = np.array(
        [
          x[n, a, b] @ p['key_value/kernel'] if known else np.zeros(2 * channels)
          for (a, b), known in zip(seen, inside, strict=True)
        ]
      ).reshape(-1, heads, 2 * head)
      q = (x[n, i, j] @ p['query/kernel']).reshape(heads, head)
      r = np.array([p['rows'][row(a, i)] + p['columns'][row(b, j)] for a, b in seen])
      content = np.einsum('md,kmd->mk', q, both[..., :head]) / np.sqrt(head)
      position = q @ r.T / (1 if timm else np.sqrt(head))
      allowed = np.ones((1, len(seen)), bool) if timm else inside[None]
      values = np.moveaxis(both[..., head:], 1, 0)
      found, weights = attend((content + position)[:, None], values, allowed)
      out[n, down, right] = found[0]
      for (a, b), known, weight in zip(seen, inside, weights[:, 0].T, strict=True):
        if known:
          maps[n, :, down * columns + right, a * width + b] = weight
    return out, {'weights': maps}

  return formula


@pytest.mark.parametrize(
  'settings',
  [
    {'num_heads': 2, 'block_size': 2, 'halo': 1},
    {'num_heads': 3, 'block_size': 2, 'halo': 1, 'variant': 'timm'},
    {'num_heads': 1, 'block_size': 4, 'halo': 2},
    {'num_heads': 2, 'block_size': 4, 'halo': 1, 'strides': 2},
    {'num_heads': 3, 'block_size': 2, 'halo': 1, 'strides': 2, 'variant': 'timm'},
  ],
  ids=str,
)
def test_equals_the_formula(settings):
  module = HaloAttention(**settings)
  hold(module, oracle(module))


def test_a_halo_that_covers_the_grid_is_global_attention():
  local, everywhere = HaloAttention(2, block_size=2, halo=4), BottleneckAttention(2)
  x = draw()
  p = variables_of(local, x)['params']
  kernel = p['key_value']['kernel'].reshape(12, 2, 2, 6)  # for each head its keys, then its values
  other = {
    'query': p['query'],
    'key': {'kernel': kernel[:, :, 0].reshape(12, 12)},
    'value': {'kernel': kernel[:, :, 1].reshape(12, 12)},
    # Difference zero is row 5 of the halo's 11; rows differ by 2 at most, columns by 4.
    'rows': p['rows'][3:8],
    'columns': p['columns'][1:10],
  }
  got = run(local, {'params': p}, x)
  want = run(everywhere, {'params': other}, x)
  np.testing.assert_allclose(got.features, want.features, atol=1e-6)
  dense = got.maps['weights'].dense()
  np.testing.assert_allclose(dense, want.maps['weights'].weights, atol=1e-6)


def test_the_first_rows_of_timms_tables_are_dead_and_the_papers_has_none():
  x = draw((2, 8, 8, 3))
  for variant, strides, rows, dead in (
    ('timm', 1, 15, 4),
    ('timm', 2, 15, 6),
    ('paper', 1, 11, 0),
    ('paper', 2, 10, 0),
  ):
    module = HaloAttention(num_heads=1, block_size=4, halo=2, strides=strides, variant=variant)
    gradient = jax.grad(lambda v, m=module: (run(m, v, x).features ** 2).sum())
    params = gradient(variables_of(module, x))['params']
    for table in (params['rows'], params['columns']):
      assert table.shape == (rows, 3)
      np.testing.assert_array_equal(table[:dead], 0)
      assert np.abs(table[dead:]).max(axis=1).min() > 0


def test_the_papers_strided_queries_are_those_of_every_other_position():
  x = draw((2, 5, 8, 6))
  strided = HaloAttention(num_heads=2, block_size=4, halo=1, strides=2)
  params = variables_of(strided, x)['params']
  # The whole block's queries reach one difference further, which these do not use.
  longer = {k: jnp.pad(params[k], ((1, 0), (0, 0))) for k in ('rows', 'columns')}
  got = run(strided, {'params': params}, x)
  want = run(strided.clone(strides=1), {'params': {**params, **longer}}, x)
  np.testing.assert_allclose(got.features, want.features[:, ::2, ::2], atol=1e-6)
  dense = want.maps['weights'].dense().reshape(2, 2, 5, 8, 40)[:, :, ::2, ::2]
  np.testing.assert_allclose(got.maps['weights'].dense(), dense.reshape(2, 2, 12, 40), atol=1e-6)


def test_at_the_border_timm_gives_weight_to_what_is_outside():
  x = draw((1, 2, 2, 4))
  sums = {}
  for variant in ('paper', 'timm'):
    module = HaloAttention(num_heads=1, block_size=2, halo=1, variant=variant)
    params = jax.tree.map(jnp.zeros_like, variables_of(module, x))
    found = run(module, params, x).maps['weights']
    assert (np.asarray(found.keys) < 0).sum() == 4 * 12
    sums[variant] = found.dense().sum(-1)
  np.testing.assert_allclose(sums['paper'], 1, atol=1e-6)
  np.testing.assert_allclose(sums['timm'], 4 / 16, atol=1e-6)


@pytest.mark.parametrize(
  ('settings', 'message'),
  [
    ({'num_heads': 5}, 'num_heads=5 must divide C=12'),
    ({'block_size': 3, 'strides': 2}, 'strides=2 must divide self.block_size=3'),
    ({'variant': 'official'}, "variant='official' must be 'paper' or 'timm'"),
  ],
  ids=str,
)
def test_what_is_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    HaloAttention(**settings).init(jax.random.key(0), draw(), train=False)
