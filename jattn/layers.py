"""The few layers that mechanisms, poolings and backbones are made of, set as the field sets them.

Linen's own layers with every default that differs between frameworks written out: padding is
symmetric, batch norm has PyTorch's momentum, its running variance and a two-pass variance,
``initialization`` says whose start is meant, and without a ``dtype`` a layer computes in the type
of its input, not in that of its parameters. To be called inside a compact method.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import canonicalize_dtype, promote_dtype

from jattn.names import look_up
from jattn.ops import Init, accumulation_dtype, bias_init, convolve, dot, kernel_init, place_as

Norm = Literal['batch', 'group', 'layer']
Activation = Literal['relu', 'gelu', 'gelu_tanh', 'silu', 'hard_swish']
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
  'relu': nn.relu,
  'gelu': functools.partial(nn.gelu, approximate=False),
  'gelu_tanh': functools.partial(nn.gelu, approximate=True),
  'silu': nn.silu,
  'hard_swish': nn.hard_swish,
}


def activation(name: Activation) -> Callable[[jax.Array], jax.Array]:
  """The function called ``name``; 'gelu' is the exact one, as PyTorch's default.

  Raises:
    ValueError: there is no such function; the message suggests the nearest.
  """
  return look_up(name, ACTIVATIONS, noun='activation')


class Dense(nn.Dense):
  """Linen's linear layer; on CPU, in bfloat16, its sums and its bias are rounded together, once."""

  @nn.nowrap  # as everywhere here: wrapped, what a layer returns would be captured twice
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """[..., C] -> [..., D]."""
    return super().__call__(inputs).astype(_type_of(self, inputs))


class Conv(nn.Conv):
  """Linen's convolution, its bias added in float32 on CPU as ``Dense`` does."""

  @nn.nowrap
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H', W', D]."""
    return super().__call__(inputs).astype(_type_of(self, inputs))


class LayerNorm(nn.LayerNorm):
  """Linen's layer norm, in the type of its input where no other is asked for."""

  @nn.nowrap
  def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """[..., C] -> [..., C]."""
    return super().__call__(x, mask=mask).astype(_type_of(self, x))


class GroupNorm(nn.GroupNorm):
  """Linen's group norm, in the type of its input where no other is asked for."""

  @nn.nowrap
  def __call__(self, x: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
    """[..., C] -> [..., C]."""
    return super().__call__(x, mask=mask).astype(_type_of(self, x))


def _type_of(layer: nn.Module, inputs: jax.Array) -> jnp.dtype:
  """``dtype`` or the input's type, where Linen takes the wider of input's and parameters'."""
  if layer.dtype is None and not jnp.issubdtype(inputs.dtype, jnp.floating):
    return canonicalize_dtype(inputs, *layer.variables['params'].values())
  return inputs.dtype if layer.dtype is None else layer.dtype


def _promote(
  inputs: jax.Array, kernel: jax.Array, bias: jax.Array | None, *, dtype: jnp.dtype | None = None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
  """To ``dtype`` or else the input's type, but on CPU a bias stays float32 beside bfloat16.

  The bias's gradient is a sum over all positions. XLA on CPU takes one of bfloat16 apart into
  windows of 32, which cost a sixth of the seed classifier's training step.
  """
  if dtype is None and jnp.issubdtype(inputs.dtype, jnp.floating):
    dtype = inputs.dtype
  inputs, kernel, promoted = promote_dtype(inputs, kernel, bias, dtype=dtype)
  if bias is None or jax.default_backend() != 'cpu':
    return inputs, kernel, promoted
  return inputs, kernel, bias.astype(accumulation_dtype(promoted))


def dense(
  features: int,
  *,
  inputs: int,
  name: str,
  initialization: Init = 'flax',
  start: jax.nn.initializers.Initializer | None = None,
  use_bias: bool = True,
  dtype: jnp.dtype | None = None,
) -> Dense:
  """A linear layer over the last axis, which is also a 1x1 convolution of [B, H, W, C].

  Args:
    features: width of the output.
    inputs: width of the input, for the bias's start.
    name: of the layer among the parameters.
    initialization: how it starts, see ``jattn.ops.kernel_init``.
    start: how the kernel alone starts, where that is not ``initialization``.
    use_bias: whether it has a bias.
    dtype: what it is computed in; None is the input's type.
  """
  return Dense(
    features,
    use_bias=use_bias,
    dtype=dtype,
    dot_general=dot,
    promote_dtype=_promote,
    kernel_init=kernel_init(initialization) if start is None else start,
    bias_init=bias_init(initialization, fan_in=inputs),
    name=name,
  )


def conv(
  features: int,
  kernel: tuple[int, ...],
  *,
  inputs: int,
  name: str,
  strides: int = 1,
  dilation: int = 1,
  groups: int = 1,
  circular: bool = False,
  padding: int | None = None,
  initialization: Init = 'flax',
  start: jax.nn.initializers.Initializer | None = None,
  use_bias: bool = True,
  dtype: jnp.dtype | None = None,
) -> Conv:
  """A convolution of [B, H, W, C], padded by ``dilation * (k // 2)`` on every side or as given.

  Args:
    features: width of the output.
    kernel: its height and width, or a side for each axis between the batch and the channels.
    inputs: width of the input.
    name: of the layer among the parameters.
    strides: of every axis.
    dilation: of every axis.
    groups: the channels fall into this many; C is a depthwise convolution.
    circular: whether each axis goes on at its other end; otherwise zeros are beyond the ends.
    padding: zeros beyond each end of each axis; None is ``dilation * (k // 2)``.
    initialization: how it starts, see ``jattn.ops.kernel_init``.
    start: how the kernel alone starts, where that is not ``initialization``.
    use_bias: whether it has a bias.
    dtype: what it is computed in; None is the input's type.
  """
  fan_in = math.prod(kernel) * inputs // groups
  sides = [dilation * (side // 2) if padding is None else padding for side in kernel]
  return Conv(
    features,
    kernel,
    promote_dtype=_promote,
    strides=strides,
    padding='CIRCULAR' if circular else [(side, side) for side in sides],
    kernel_dilation=dilation,
    feature_group_count=groups,
    conv_general_dilated=convolve,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=kernel_init(initialization) if start is None else start,
    bias_init=bias_init(initialization, fan_in=fan_in),
    name=name,
  )


class BatchNorm(nn.BatchNorm):
  """Linen's batch norm, whose running variance is fed the unbiased one, n / (n - 1), as PyTorch's.

  ``n`` is how many numbers of a channel the norm sees (with ``axis_name``: on one device).
  """

  @nn.nowrap
  def _unbiased(self, old: jax.Array, new: jax.Array, count: int) -> jax.Array:
    kept = self.momentum * old
    return kept + (new - kept) * (count / max(count - 1, 1))

  @nn.nowrap
  def __call__(self, x: jax.Array, use_running_average: bool | None = None) -> jax.Array:
    """[..., C] -> [..., C]."""
    old = self.get_variable('batch_stats', 'var')  # None where the parameters are being made
    y = super().__call__(x, use_running_average).astype(_type_of(self, x))
    new = self.get_variable('batch_stats', 'var')
    if old is not None and new is not old and self.is_mutable_collection('batch_stats'):
      count = math.prod(x.shape[:-1])
      self.put_variable('batch_stats', 'var', self._unbiased(old, new, count))
    return y


def batch_norm(
  *,
  train: bool,
  name: str,
  momentum: float = 0.9,
  epsilon: float = 1e-5,
  scale_init: jax.nn.initializers.Initializer = jax.nn.initializers.ones,
  dtype: jnp.dtype | None = None,
) -> BatchNorm:
  """Batch norm over all axes but the last, Ioffe & Szegedy 2015, arXiv 1502.03167.

  Statistics are float32 and, under ``jit`` over a mesh, of the whole batch. ``momentum`` is the
  share of the old running value kept (PyTorch's ``momentum`` is one minus that). The batch is
  normalised by its biased variance; what the running variance is fed is the unbiased one.

  Args:
    train: whether to normalise by the batch's statistics and update the running ones.
    name: of the layer among the parameters.
    momentum: share of the running value that is kept.
    epsilon: added to the variance.
    scale_init: how the scale starts; zero makes the block it ends start as its shortcut.
    dtype: what it is computed in; None is the input's type.
  """
  return BatchNorm(
    use_running_average=not train,
    momentum=momentum,
    epsilon=epsilon,
    use_fast_variance=False,
    scale_init=scale_init,
    dtype=dtype,
    name=name,
  )


def layer_norm(
  *,
  name: str,
  epsilon: float = 1e-6,
  dtype: jnp.dtype | None = None,
) -> LayerNorm:
  """Layer norm over the last axis, Ba et al. 2016, arXiv 1607.06450; statistics are float32.

  Args:
    name: of the layer among the parameters.
    epsilon: added to the variance; 1e-6 is timm's and big_vision's, PyTorch's own is 1e-5.
    dtype: what it is computed in; None is the input's type.
  """
  return LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def norm(
  kind: Norm,
  *,
  train: bool,
  name: str,
  scale_init: jax.nn.initializers.Initializer = jax.nn.initializers.ones,
  dtype: jnp.dtype | None = None,
) -> nn.Module:
  """Batch norm, group norm of 8 groups (Wu & He 2018, arXiv 1803.08494), or layer norm.

  Group norm and layer norm (over the channels of a position) know nothing of the other images of a
  batch: they are the same in training and after. Epsilon is 1e-5, of layer norm 1e-6.

  Args:
    kind: 'batch', 'group' or 'layer'.
    train: for batch norm, see there.
    name: of the layer among the parameters.
    scale_init: how the scale starts.
    dtype: what it is computed in; None is the input's type.

  Raises:
    ValueError: another kind.
  """
  if kind == 'batch':
    return batch_norm(train=train, name=name, scale_init=scale_init, dtype=dtype)
  if kind == 'group':
    return GroupNorm(
      num_groups=8,
      epsilon=1e-5,
      use_fast_variance=False,
      scale_init=scale_init,
      dtype=dtype,
      name=name,
    )
  if kind == 'layer':
    return LayerNorm(
      epsilon=1e-6, use_fast_variance=False, scale_init=scale_init, dtype=dtype, name=name
    )
  raise ValueError(f"norm={kind!r} must be 'batch', 'group' or 'layer'")


class Dropout(nn.Dropout):
  """Linen's dropout, also of features on a mesh with explicit axes, where its draws are nowhere."""

  @nn.nowrap
  def __call__(self, inputs: jax.Array) -> jax.Array:
    """Of any shape, and the same back."""
    if self.deterministic or all(place is None for place in jax.typeof(inputs).sharding.spec):
      return super().__call__(inputs)
    return inputs * place_as(super().__call__(jnp.ones(inputs.shape, inputs.dtype)), inputs)


class DropPath(nn.Module):
  """Stochastic depth: in training a branch of an image is dropped, the others are scaled up.

  ``x / (1 - rate)`` with probability ``1 - rate``, zero otherwise, drawn for each image. Huang et
  al. 2016, arXiv 1603.09382. Needs a ``dropout`` key in training if the rate is above zero.

  Attributes:
    rate: probability of dropping, in [0, 1).
  """

  rate: float = 0.0

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """[B, ...] -> [B, ...].

    Raises:
      ValueError: the rate is out of range.
    """
    if not 0 <= self.rate < 1:
      raise ValueError(f'{self.rate=} must be in [0, 1)')
    if not train or self.rate == 0:
      return x
    shape = (x.shape[0],) + (1,) * (x.ndim - 1)
    kept = jax.random.bernoulli(self.make_rng('dropout'), 1 - self.rate, shape)
    kept = place_as(kept, x)
    return jnp.where(kept, x / (1 - self.rate), 0).astype(x.dtype)


class LayerScale(nn.Module):
  """``gamma * x`` with a learned ``gamma`` [C]. Touvron et al. 2021 (CaiT), arXiv 2103.17239.

  Attributes:
    start: what ``gamma`` starts at; zero makes a residual branch start as nothing.
  """

  start: float = 1e-6

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """[..., C] -> [..., C]."""
    gamma = self.param('gamma', nn.initializers.constant(self.start), (x.shape[-1],), jnp.float32)
    # In the type of gamma, so that its gradient, a sum over all positions, is not one of bfloat16.
    return (x * gamma.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


def drop_path_rates(rate: float, depths: tuple[int, ...]) -> tuple[tuple[float, ...], ...]:
  """The rate of every block, by stages: rising evenly from 0 at the first to ``rate`` at the last.

  >>> drop_path_rates(0.3, (1, 3))
  ((0.0,), (0.1, 0.2, 0.3))
  """
  last = max(sum(depths) - 1, 1)
  rates = [round(rate * index / last, 12) for index in range(sum(depths))]
  starts = [sum(depths[:stage]) for stage in range(len(depths))]
  return tuple(tuple(rates[s : s + d]) for s, d in zip(starts, depths, strict=True))
