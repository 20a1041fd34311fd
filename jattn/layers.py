"""The few layers that mechanisms, poolings and backbones are made of, set as the field sets them.

Linen's own layers with every default that differs between frameworks written out: padding is
symmetric, batch norm has PyTorch's momentum and a two-pass variance, and ``initialization`` says
whose start is meant. To be called inside a compact method.
"""

import math
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.ops import Init, bias_init, kernel_init

Norm = Literal['batch', 'group']


def dense(
  features: int,
  *,
  inputs: int,
  name: str,
  initialization: Init = 'flax',
  start: jax.nn.initializers.Initializer | None = None,
  use_bias: bool = True,
  dtype: jnp.dtype | None = None,
) -> nn.Dense:
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
  return nn.Dense(
    features,
    use_bias=use_bias,
    dtype=dtype,
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
  initialization: Init = 'flax',
  use_bias: bool = True,
  dtype: jnp.dtype | None = None,
) -> nn.Conv:
  """A convolution of [B, H, W, C], padded by ``dilation * (k // 2)`` on every side.

  Args:
    features: width of the output.
    kernel: its height and width, or a side for each axis between the batch and the channels.
    inputs: width of the input.
    name: of the layer among the parameters.
    strides: of every axis.
    dilation: of every axis.
    groups: the channels fall into this many; C is a depthwise convolution.
    circular: whether each axis goes on at its other end; otherwise zeros are beyond the ends.
    initialization: how it starts, see ``jattn.ops.kernel_init``.
    use_bias: whether it has a bias.
    dtype: what it is computed in; None is the input's type.
  """
  fan_in = math.prod(kernel) * inputs // groups
  return nn.Conv(
    features,
    kernel,
    strides=strides,
    padding='CIRCULAR' if circular else [(dilation * (side // 2),) * 2 for side in kernel],
    kernel_dilation=dilation,
    feature_group_count=groups,
    use_bias=use_bias,
    dtype=dtype,
    kernel_init=kernel_init(initialization),
    bias_init=bias_init(initialization, fan_in=fan_in),
    name=name,
  )


def batch_norm(
  *,
  train: bool,
  name: str,
  momentum: float = 0.9,
  epsilon: float = 1e-5,
  scale_init: jax.nn.initializers.Initializer = jax.nn.initializers.ones,
  dtype: jnp.dtype | None = None,
) -> nn.BatchNorm:
  """Batch norm over all axes but the last, Ioffe & Szegedy 2015, arXiv 1502.03167.

  Statistics are float32 and, under ``jit`` over a mesh, of the whole batch. ``momentum`` is the
  share of the old running value kept (PyTorch's ``momentum`` is one minus that). The running
  variance is the biased one, n / (n - 1) below PyTorch's.

  Args:
    train: whether to normalise by the batch's statistics and update the running ones.
    name: of the layer among the parameters.
    momentum: share of the running value that is kept.
    epsilon: added to the variance.
    scale_init: how the scale starts; zero makes the block it ends start as its shortcut.
    dtype: what it is computed in; None is the input's type.
  """
  return nn.BatchNorm(
    use_running_average=not train,
    momentum=momentum,
    epsilon=epsilon,
    use_fast_variance=False,
    scale_init=scale_init,
    dtype=dtype,
    name=name,
  )


def norm(
  kind: Norm,
  *,
  train: bool,
  name: str,
  scale_init: jax.nn.initializers.Initializer = jax.nn.initializers.ones,
  dtype: jnp.dtype | None = None,
) -> nn.Module:
  """Batch norm, or group norm of 8 groups (Wu & He 2018, arXiv 1803.08494; epsilon 1e-5).

  Group norm knows nothing of the other images of a batch: it is the same in training and after.

  Args:
    kind: 'batch' or 'group'.
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
    return nn.GroupNorm(
      num_groups=8,
      epsilon=1e-5,
      use_fast_variance=False,
      scale_init=scale_init,
      dtype=dtype,
      name=name,
    )
  raise ValueError(f"norm={kind!r} must be 'batch' or 'group'")
