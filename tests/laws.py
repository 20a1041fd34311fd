"""One table of instances; every law runs over every row, and a public part without a row fails."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jattn import attention, pooling
from jattn.attention import Residual, SelfAttention
from jattn.types import AttentionMap

# All different, so that no transposition passes by luck.
B, H, W, C = 2, 3, 5, 12


@dataclasses.dataclass(frozen=True)
class Row:
  """One instance under the laws.

  Attributes:
    name: its name in MECHANISMS or POOLINGS, or of a wrapper.
    make: settings in ``dtype`` -> module.
    shape: of the features or the vector it returns for [2, 3, 5, 12].
    dead: parameters, by path, whose gradient is zero for a reason, and the reason.
    rebuild: (params, x, maps) -> what the maps say the output is, where the formula allows it.
    any_grid: whether parameters made at one size apply at another.
  """

  name: str
  make: Callable[..., nn.Module]
  shape: tuple[int, ...]
  dead: dict[str, str] = dataclasses.field(default_factory=dict)
  rebuild: Callable | None = None
  any_grid: bool = True


KEY_BIAS = 'adds one number to a whole row of scores, which softmax ignores'


def _values(params, x, maps):
  """Self-attention again from its returned map: A (X W_V + b), then the projection."""
  (a,) = [m for m in maps.values() if m.kind == 'position']
  weights = np.asarray(a.weights, np.float64)
  tokens = np.asarray(x, np.float64).reshape(x.shape[0], -1, x.shape[-1])
  value = params['value']
  v = tokens @ np.asarray(value['kernel'], np.float64) + np.asarray(value['bias'])
  v = v.reshape(*v.shape[:2], weights.shape[1], -1)
  out = np.einsum('bmqk,bkmd->bqmd', weights, v).reshape(*x.shape[:3], -1)
  if 'out' in params:
    out = out @ np.asarray(params['out']['kernel'], np.float64) + np.asarray(params['out']['bias'])
  return out


def _pooled(params, x, maps):
  (a,) = maps.values()
  out = np.einsum('bmhw,bhwc->bmc', np.asarray(a.weights, float), np.asarray(x, float))
  return out.reshape(len(x), -1)


def _aggregated(params, x, maps):
  (a,) = maps.values()
  scaled = np.asarray(a.weights, float) * H * W
  product = scaled[..., None] * np.asarray(x, float)[:, None]
  out = np.concatenate([product.mean(axis=(2, 3)), product.max(axis=(2, 3))], axis=-1)
  return out.reshape(len(x), -1)


MECHANISM_ROWS = [
  Row(
    'self_attention',
    lambda **d: SelfAttention(qk_features=4, v_features=6, **d),
    (B, H, W, 6),
    {'key/bias': KEY_BIAS},
    _values,
  ),
  Row(
    'self_attention',
    lambda **d: SelfAttention(num_heads=3, qk_features=6, v_features=9, out_features=7, **d),
    (B, H, W, 7),
    {'key/bias': KEY_BIAS},
    _values,
  ),
  Row(
    'self_attention',
    lambda **d: SelfAttention(num_heads=4, num_key_heads=2, use_bias=False, **d),
    (B, H, W, C),
  ),
  Row(
    'residual',
    lambda **d: Residual(SelfAttention(num_heads=2, **d)),
    (B, H, W, C),
    {'mechanism/key/bias': KEY_BIAS},
  ),
]

POOLING_ROWS = [
  Row('average', lambda **_: pooling.Average(), (B, C)),
  Row('max', lambda **_: pooling.Max(), (B, C)),
  Row('flatten', lambda **_: pooling.Flatten(), (B, H * W * C)),
  Row('weighted_average', lambda **_: pooling.WeightedAverage(), (B, C), rebuild=_pooled),
  Row(
    'weighted_average',
    lambda **d: pooling.WeightedAverage(score='tanh', hidden=5, **d),
    (B, C),
    rebuild=_pooled,
  ),
  Row(
    'weighted_average',
    lambda **d: pooling.WeightedAverage(score='gated', hidden=5, num_maps=3, **d),
    (B, 3 * C),
    rebuild=_pooled,
  ),
  Row(
    'attention_aggregate',
    lambda **d: pooling.AttentionAggregate(reduce='both', num_maps=2, **d),
    (B, 2 * 2 * C),
    rebuild=_aggregated,
  ),
  Row(
    'attention_aggregate',
    lambda **d: pooling.AttentionAggregate(reduce='max', score='gated', hidden=4, **d),
    (B, C),
  ),
  Row(
    'attention_aggregate',
    lambda **d: pooling.AttentionAggregate(reduce='average', rescale=False, **d),
    (B, C),
  ),
]

NAMES = {*attention.MECHANISMS, *pooling.POOLINGS, 'residual'}


def check_kind(attention_map: AttentionMap, features_shape: tuple[int, ...]) -> None:
  """The law of the map's kind, for maps over features [B, H, W, C]."""
  weights = np.asarray(attention_map.weights, np.float64)
  batch, height, width, channels = features_shape
  assert attention_map.weights.dtype == jnp.float32
  assert np.isfinite(weights).all()
  assert weights.min() >= 0
  if attention_map.kind == 'position':
    assert weights.ndim == 4
    assert weights.shape[0] == batch
    assert weights.shape[3] == attention_map.grid[0] * attention_map.grid[1]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  elif attention_map.kind == 'pool':
    assert weights.shape == (batch, weights.shape[1], height, width)
    assert attention_map.grid == (height, width)
    np.testing.assert_allclose(weights.sum((2, 3)), 1, atol=1e-5)
  elif attention_map.kind == 'gate':
    np.broadcast_shapes(weights.shape, features_shape)
  elif attention_map.kind == 'branch':
    assert weights.ndim == 3
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
  else:
    assert attention_map.kind == 'channel'
    assert weights.shape[2:] == (channels, channels)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
