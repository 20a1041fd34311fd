"""One table of instances; every law runs over every row, and a public part without a row fails."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
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
    starts_otherwise: layers, by path, that do not start as ``initialization`` says; each has a test
      of its own.
    pure_gate: whether the features are the input times the product of the returned gates.
  """

  name: str
  make: Callable[..., nn.Module]
  shape: tuple[int, ...]
  dead: dict[str, str] = dataclasses.field(default_factory=dict)
  rebuild: Callable | None = None
  any_grid: bool = True
  starts_otherwise: tuple[str, ...] = ()
  pure_gate: bool = False


KEY_BIAS = 'adds one number to a whole row of scores, which softmax ignores'


def _values(params, x, maps):
  """Self-attention again from its returned map: A (X W_V + b), then the projection."""
  (a,) = [m for m in maps.values() if m.kind == 'position']
  weights = np.asarray(a.dense(), np.float64)
  tokens = np.asarray(x, np.float64).reshape(x.shape[0], -1, x.shape[-1])
  value = params['value']
  v = tokens @ np.asarray(value['kernel'], np.float64) + np.asarray(value.get('bias', 0.0))
  v = v.reshape(*v.shape[:2], weights.shape[1], -1)
  out = np.einsum('bmqk,bkmd->bqmd', weights, v).reshape(*x.shape[:3], -1)
  if 'out' in params:
    out = out @ np.asarray(params['out']['kernel'], np.float64)
    out = out + np.asarray(params['out'].get('bias', 0.0))
  return out


def _axial_values(params, x, maps):
  for name in ('column', 'row'):
    layer = {part: params[f'{name}_{part}'] for part in ('value', 'out')}
    x = _values(layer, x, {name: maps[name]})
  return x


def _halo_values(params, x, maps):
  weights = maps['weights'].dense()
  kernel = np.asarray(params['key_value']['kernel'], np.float64)
  kernel = kernel.reshape(len(kernel), weights.shape[1], 2, -1)[:, :, 1]
  return _values({'value': {'kernel': kernel.reshape(len(kernel), -1)}}, x, maps)


def _pooled(params, x, maps):
  (a,) = maps.values()
  out = np.einsum('bmhw,bhwc->bmc', np.asarray(a.weights, float), np.asarray(x, float))
  return out.reshape(len(x), -1)


def _sim_pooled(params, x, maps):
  """SimPool with gamma 2: its map weighs the squares of the shifted, normed features."""
  x = np.asarray(x, float)
  v = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  v = v * np.asarray(params['norm']['scale'], float) + np.asarray(params['norm']['bias'])
  v = v - v.min(axis=(1, 2, 3), keepdims=True) + 1e-6
  weights = np.asarray(maps['weights'].weights, float)
  v = v.reshape(*x.shape[:3], weights.shape[1], -1)
  return np.einsum('bmhw,bhwmd->bmd', weights, v**2).reshape(len(x), -1) ** 0.5


def _projected(params, x, maps):
  """The map's weighted average of the values, projected: the mean token's share included."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
  weights = np.asarray(maps['weights'].weights, float)
  values = np.asarray(x, float) @ p['value']['kernel'] + p['value']['bias']
  values = values.reshape(*x.shape[:3], weights.shape[1], -1)
  pooled = np.einsum('bmhw,bhwmd->bmd', weights, values).reshape(len(x), -1)
  return pooled @ p['out']['kernel'] + p['out']['bias']


def _separable(params, x, maps):
  """Separable attention's context is its map's weighted average of the keys."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
  projected = np.asarray(x, float) @ p['qkv']['kernel'] + p['qkv']['bias']
  _, key, value = np.split(projected, (1, 1 + x.shape[-1]), axis=-1)
  context = np.einsum('bmhw,bhwc->bmc', np.asarray(maps['weights'].weights, float), key)
  return (np.maximum(value, 0) * context[:, None]) @ p['out']['kernel'] + p['out']['bias']


def _mixed_channels(params, x, maps):
  """Cross-covariance attention's map says which channels of the values make up each channel."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
  weights = np.asarray(maps['weights'].weights, float)
  values = np.asarray(x, float) @ p['value']['kernel'] + p['value'].get('bias', 0)
  values = values.reshape(*x.shape[:3], weights.shape[1], -1)
  mixed = np.einsum('bmde,bhwme->bhwmd', weights, values).reshape(x.shape)
  return mixed @ p['out']['kernel'] + p['out']['bias']


def _differential(params, x, maps):
  """Differential attention of depth 0 from its two maps: their difference, RMS norm, projection."""
  p = jax.tree.map(lambda leaf: np.asarray(leaf, float), params)
  kept, subtracted = (np.asarray(maps[name].weights, float) for name in ('weights', 'subtracted'))
  factor = np.exp(p['lambda_q1'] @ p['lambda_k1']) - np.exp(p['lambda_q2'] @ p['lambda_k2']) + 0.2
  v = np.asarray(x, float).reshape(len(x), H * W, -1) @ p['value']['kernel']
  v = v.reshape(*v.shape[:2], kept.shape[1], -1)
  out = np.einsum('bmqk,bkmd->bqmd', kept - factor * subtracted, v)
  out = 0.8 * p['norm']['scale'] * out / np.sqrt((out**2).mean(-1, keepdims=True) + 1e-5)
  return out.reshape(x.shape) @ p['out']['kernel']


def _aggregated(params, x, maps):
  (a,) = maps.values()
  scaled = np.asarray(a.weights, float) * H * W
  product = scaled[..., None] * np.asarray(x, float)[:, None]
  out = np.concatenate([product.mean(axis=(2, 3)), product.max(axis=(2, 3))], axis=-1)
  return out.reshape(len(x), -1)


def _global_context(params, x, maps):
  """The block again from its pooled map: context, bottleneck with layer norm (1e-5), sum."""
  p = {f'{a}/{b}': np.asarray(v, float) for a, leaf in params.items() for b, v in leaf.items()}
  x = np.asarray(x, float)
  u = np.einsum('bmhw,bhwc->bc', np.asarray(maps['weights'].weights, float), x)
  u = u @ p['add_reduce/kernel'] + p['add_reduce/bias']
  u = (u - u.mean(-1, keepdims=True)) / np.sqrt(u.var(-1, keepdims=True) + 1e-5)
  u = np.maximum(u * p['add_norm/scale'] + p['add_norm/bias'], 0)
  return x + (u @ p['add_expand/kernel'] + p['add_expand/bias'])[:, None, None]


def _gated_tokens(x, maps):
  gates = [np.asarray(maps[f'token_{s}'].weights, float) for s in range(len(maps))]
  return np.stack([(np.asarray(x, float) * g).sum(axis=(1, 2)) for g in gates], 1)[:, None]


def _mean_of_gates(_, x, maps):
  gates = [np.asarray(m.weights, float) for m in maps.values()]
  return np.asarray(x, float) * sum(gates) / len(gates)


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
    lambda **d: SelfAttention(num_heads=4, num_key_heads=2, use_bias=False, mimetic=0.7, **d),
    (B, H, W, C),
    starts_otherwise=('query', 'key'),
  ),
  Row(
    'self_attention',
    lambda **d: SelfAttention(num_heads=3, use_bias=False, relative_bias=True, **d),
    (B, H, W, C),
    rebuild=_values,
  ),
  Row(
    'squeeze_excite',
    lambda **d: attention.SqueezeExcite(reduction=4, **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'squeeze_excite',
    lambda **d: attention.SqueezeExcite(variant='timm', **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'effective_squeeze_excite',
    lambda **d: attention.EffectiveSqueezeExcite(**d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'cbam',
    lambda **d: attention.Cbam(reduction=5, **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'cbam',
    lambda **d: attention.Cbam(reduction=3, variant='official', **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'cbam',
    lambda **d: attention.Cbam(reduction=4, variant='timm', kernel_size=3, **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'split_attention',
    lambda **d: attention.SplitAttention(radix=3, cardinality=2, **d),
    (B, H, W, C),
  ),
  Row(
    'split_attention',
    lambda **d: attention.SplitAttention(features=14, strides=2, variant='timm', **d),
    (B, 2, 3, 14),
  ),
  Row(
    'split_attention',
    lambda **d: attention.SplitAttention(radix=1, cardinality=4, **d),
    (B, H, W, C),
  ),
  Row(
    'window',
    lambda **d: attention.WindowAttention(num_heads=3, window_size=2, shift=1, **d),
    (B, H, W, C),
    {'key/bias': KEY_BIAS},
    _values,
  ),
  Row(
    'window',
    lambda **d: attention.WindowAttention(
      num_heads=2, window_size=4, variant='tf', use_bias=False, **d
    ),
    (B, H, W, C),
    rebuild=_values,
  ),
  Row(
    'non_local',
    lambda **d: attention.NonLocal(**d),
    (B, H, W, C),
    {'key/bias': KEY_BIAS},
  ),
  Row(
    'non_local',
    lambda **d: attention.NonLocal(reduction=3, variant='timm', **d),
    (B, H, W, C),
    {'key/bias': KEY_BIAS},
  ),
  Row(
    'non_local',
    lambda **d: attention.NonLocal(reduction=4, variant='official', **d),
    (B, H, W, C),
    {'key/bias': KEY_BIAS},
  ),
  Row('non_local', lambda **d: attention.NonLocal('gaussian', reduction=4, **d), (B, H, W, C)),
  Row('non_local', lambda **d: attention.NonLocal('dot_product', **d), (B, H, W, C)),
  Row('non_local', lambda **d: attention.NonLocal('concatenation', **d), (B, H, W, C)),
  Row(
    'selective_kernel',
    lambda **d: attention.SelectiveKernel(groups=3, **d),
    (B, H, W, C),
  ),
  Row(
    'selective_kernel',
    lambda **d: attention.SelectiveKernel(paths=((3, 1), (5, 1), (3, 3)), features=7, **d),
    (B, H, W, 7),
  ),
  Row(
    'selective_kernel',
    lambda **d: attention.SelectiveKernel(variant='timm', features=14, strides=2, **d),
    (B, 2, 3, 14),
  ),
  Row(
    'bottleneck',
    lambda **d: attention.BottleneckAttention(num_heads=3, **d),
    (B, H, W, C),
    rebuild=_values,
  ),
  Row(
    'bottleneck',
    lambda **d: attention.BottleneckAttention(num_heads=2, variant='timm', **d),
    (B, H, W, C),
    rebuild=_values,
  ),
  Row(
    'linear_attention',
    lambda **d: attention.LinearAttention(qk_features=8, v_features=6, **d),
    (B, H, W, 6),
    rebuild=_values,
  ),
  Row(
    'linear_attention',
    lambda **d: attention.LinearAttention(num_heads=3, out_features=7, **d),
    (B, H, W, 7),
    rebuild=_values,
  ),
  Row(
    'linear_attention',
    lambda **d: attention.LinearAttention(num_heads=4, use_bias=False, **d),
    (B, H, W, C),
  ),
  Row(
    'eca',
    lambda **d: attention.EfficientChannelAttention(**d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'eca',
    lambda **d: attention.EfficientChannelAttention(kernel_size=5, **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'circular_eca',
    lambda **d: attention.CircularEfficientChannelAttention(**d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'halo',
    lambda **d: attention.HaloAttention(num_heads=3, block_size=2, halo=1, **d),
    (B, H, W, C),
    rebuild=_halo_values,
  ),
  Row(
    'halo',
    lambda **d: attention.HaloAttention(num_heads=2, block_size=3, halo=1, variant='timm', **d),
    (B, H, W, C),
    rebuild=_halo_values,
  ),
  Row(
    'halo',
    lambda **d: attention.HaloAttention(num_heads=3, block_size=2, halo=1, strides=2, **d),
    (B, 2, 3, C),
  ),
  Row(
    'global_context',
    lambda **d: attention.GlobalContext(reduction=2, **d),
    (B, H, W, C),
    {'score/bias': 'adds one number to every score, which softmax ignores'},
    _global_context,
    starts_otherwise=('score', 'add_expand'),
  ),
  Row(
    'global_context',
    lambda **d: attention.GlobalContext('multiply', reduction=3, variant='timm', **d),
    (B, H, W, C),
    {'score/bias': 'adds one number to every score, which softmax ignores'},
    lambda _, x, maps: np.asarray(x, float) * np.asarray(maps['gate'].weights),
    starts_otherwise=('score',),
  ),
  Row(
    'token_learner',
    lambda **d: attention.TokenLearner(num_tokens=7, hidden=9, **d),
    (B, 1, 7, C),
    {'expand/bias': 'adds one number to a whole map of scores, which softmax ignores'},
    lambda params, x, maps: _pooled(params, x, maps).reshape(B, 1, 7, C),
  ),
  Row(
    'token_learner',
    lambda **d: attention.TokenLearner(num_tokens=4, variant='paper', **d),
    (B, 1, 4, C),
    rebuild=lambda params, x, maps: _gated_tokens(x, maps) / (H * W),
  ),
  Row(
    'token_learner',
    lambda **d: attention.TokenLearner(num_tokens=4, variant='official', **d),
    (B, 1, 4, C),
    rebuild=lambda params, x, maps: _gated_tokens(x, maps),
  ),
  Row('lite_mla', lambda **d: attention.LiteMla(head_width=4, **d), (B, H, W, C)),
  Row(
    'lite_mla',
    lambda **d: attention.LiteMla(num_heads=2, scales=(3, 5), out_features=7, **d),
    (B, H, W, 7),
  ),
  Row('large_kernel', lambda **d: attention.LargeKernel(**d), (B, H, W, C)),
  Row(
    'large_kernel',
    lambda **d: attention.LargeKernel(kernel_size=5, dilation=2, **d),
    (B, H, W, C),
  ),
  Row(
    'axial',
    lambda **d: attention.AxialAttention(num_heads=3, **d),
    (B, H, W, C),
    rebuild=_axial_values,
  ),
  Row(
    'axial',
    lambda **d: attention.AxialAttention(num_heads=2, **d),
    (B, H, W, C),
    rebuild=_axial_values,
  ),
  Row(
    'gather_excite',
    lambda **_: attention.GatherExcite(extent=2),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'gather_excite',
    lambda **d: attention.GatherExcite(extent=0, extra_params=True, **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'gather_excite',
    lambda **d: attention.GatherExcite(extent=4, extra_params=True, use_mlp=True, reduction=2, **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'separable',
    lambda **d: attention.SeparableAttention(**d),
    (B, H, W, C),
    rebuild=_separable,
  ),
  Row('separable', lambda **d: attention.SeparableAttention(use_bias=False, **d), (B, H, W, C)),
  Row(
    'cross_covariance',
    lambda **d: attention.CrossCovarianceAttention(num_heads=3, **d),
    (B, H, W, C),
    rebuild=_mixed_channels,
  ),
  Row(
    'cross_covariance',
    lambda **d: attention.CrossCovarianceAttention(use_bias=False, variant='official', **d),
    (B, H, W, C),
    rebuild=_mixed_channels,
  ),
  Row(
    'criss_cross',
    lambda **d: attention.CrissCrossAttention(reduction=3, **d),
    (B, H, W, C),
    {'key/bias': KEY_BIAS},
    _values,
  ),
  Row(
    'criss_cross',
    lambda **d: attention.CrissCrossAttention(reduction=12, **d),
    (B, H, W, C),
    {'key/bias': KEY_BIAS},
    _values,
  ),
  Row('simam', lambda **_: attention.SimAM(), (B, H, W, C), pure_gate=True),
  Row('simam', lambda **_: attention.SimAM(regularisation=0.1), (B, H, W, C), pure_gate=True),
  Row(
    'coordinate',
    lambda **d: attention.CoordinateAttention(**d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'coordinate',
    lambda **d: attention.CoordinateAttention(variant='timm', **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'bam',
    lambda **d: attention.Bam(reduction=3, **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'bam',
    lambda **d: attention.Bam(reduction=2, dilation=2, variant='official', **d),
    (B, H, W, C),
    pure_gate=True,
  ),
  Row(
    'differential',
    lambda **d: attention.DifferentialAttention(num_heads=2, **d),
    (B, H, W, C),
    rebuild=_differential,
  ),
  Row(
    'differential',
    lambda **d: attention.DifferentialAttention(num_heads=3, depth=4, use_bias=True, **d),
    (B, H, W, C),
    {'key/bias': KEY_BIAS},
  ),
  Row(
    'lambda',
    lambda **d: attention.LambdaLayer(num_heads=4, head_features=2, kernel_size=3, **d),
    (B, H, W, C),
  ),
  Row(
    'lambda',
    lambda **d: attention.LambdaLayer(
      num_heads=3, head_features=2, kernel_size=5, variant='timm', **d
    ),
    (B, H, W, C),
  ),
  Row(
    'triplet',
    lambda **d: attention.TripletAttention(**d),
    (B, H, W, C),
    rebuild=_mean_of_gates,
  ),
  Row(
    'triplet',
    lambda **d: attention.TripletAttention(kernel_size=3, **d),
    (B, H, W, C),
    rebuild=_mean_of_gates,
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
  Row('average_max', lambda **_: pooling.AverageMax(), (B, 2 * C)),
  Row('average_max', lambda **_: pooling.AverageMax(combine='mean'), (B, C)),
  Row('generalised_mean', lambda **_: pooling.GeneralisedMean(), (B, C)),
  Row('generalised_mean', lambda **_: pooling.GeneralisedMean(2.0, per_channel=True), (B, C)),
  Row('log_sum_exp', lambda **_: pooling.LogSumExp(), (B, C)),
  Row('log_sum_exp', lambda **_: pooling.LogSumExp(sharpness=0.5), (B, C)),
  Row(
    'weighted_average',
    lambda **d: pooling.WeightedAverage(num_maps=2, normalise='sigmoid', **d),
    (B, 2 * C),
    rebuild=_pooled,
  ),
  Row(
    'seq_pool',
    lambda initialization='flax', **_: pooling.SeqPool(initialization),
    (B, C),
    {'score/bias': 'adds one number to every score, which softmax ignores'},
    _pooled,
  ),
  Row('sim_pool', lambda **d: pooling.SimPool(**d), (B, C), rebuild=_sim_pooled),
  Row('sim_pool', lambda **d: pooling.SimPool(3, **d), (B, C), rebuild=_sim_pooled),
  Row('sim_pool', lambda **d: pooling.SimPool(2, gamma=1.25, **d), (B, C)),
  Row('sim_pool', lambda **d: pooling.SimPool(gamma=None, **d), (B, C)),
  Row(
    'attention_pool_2d',
    lambda **d: pooling.AttentionPool2d(3, grid=(H, W), **d),
    (B, C),
    {'key/bias': KEY_BIAS},
  ),
  Row(
    'attention_pool_2d',
    lambda **d: pooling.AttentionPool2d(2, out_features=7, use_bias=False, **d),
    (B, 7),
  ),
  Row(
    'attention_pool_2d',
    lambda **d: pooling.AttentionPool2d(3, positions='rotary', out_features=7, **d),
    (B, 7),
    rebuild=_projected,
  ),
  Row(
    'latent_attention_pool',
    lambda **d: pooling.LatentAttentionPool(3, mlp_ratio=0.5, **d),
    (B, C),
    {'key/bias': KEY_BIAS},
  ),
  Row(
    'latent_attention_pool',
    lambda **d: pooling.LatentAttentionPool(2, mlp_ratio=1.5, variant='timm', **d),
    (B, C),
    {'key/bias': KEY_BIAS},
  ),
  Row(
    'class_attention',
    lambda **d: pooling.ClassAttention(3, **d),
    (B, C),
    {'key/bias': KEY_BIAS},
  ),
  Row(
    'class_attention',
    lambda **d: pooling.ClassAttention(2, out_features=7, use_bias=False, **d),
    (B, 7),
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
    if attention_map.keys is None:
      assert weights.shape[3] == attention_map.grid[0] * attention_map.grid[1]
    else:
      assert attention_map.keys.shape == weights.shape[2:]
      assert np.asarray(attention_map.keys).max() < attention_map.grid[0] * attention_map.grid[1]
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
  elif attention_map.kind == 'pool':
    assert weights.shape == (batch, weights.shape[1], height, width)
    assert attention_map.grid == (height, width)
    np.testing.assert_allclose(weights.sum((2, 3)), 1, atol=1e-5)
  elif attention_map.kind == 'gate':
    assert weights.ndim == 4
    assert np.broadcast_shapes(weights.shape, features_shape) == features_shape
  elif attention_map.kind == 'branch':
    assert weights.ndim == 3
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
  else:
    assert attention_map.kind == 'channel'
    assert weights.shape[1:] == (weights.shape[1], *(channels // weights.shape[1],) * 2)
    np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)
