"""Initialisation as different frameworks do it, for the field ``initialization`` of a module."""

import math
from typing import Literal

import jax
import jax.numpy as jnp

Init = Literal['flax', 'torch', 'paper']


def kernel_init(init: Init) -> jax.nn.initializers.Initializer:
  """How the kernel of a convolution or linear layer starts.

  ``flax``: LeCun normal, variance ``1 / fan_in`` (truncated at two standard deviations).
  ``torch``: uniform in ``+-1 / sqrt(fan_in)``, variance ``1 / (3 fan_in)``, as PyTorch starts its
  ``Conv2d`` and ``Linear``. ``paper``: normal with variance ``2 / fan_out``, as the residual
  networks that most attention papers start from (He et al. 2015, arXiv 1502.01852, backward form);
  a mechanism whose authors do otherwise says so. Kernels have the output axis last.

  Raises:
    ValueError: another name.

  >>> kernel = kernel_init('torch')(jax.random.key(0), (100, 50))
  >>> bool(jnp.abs(kernel).max() <= 0.1), bool(jnp.abs(kernel).max() > 0.099)
  (True, True)
  """
  if init == 'flax':
    return jax.nn.initializers.lecun_normal()
  if init == 'torch':
    return jax.nn.initializers.variance_scaling(1 / 3, 'fan_in', 'uniform')
  if init == 'paper':
    return jax.nn.initializers.variance_scaling(2, 'fan_out', 'normal')
  raise ValueError(f"{init=} must be 'flax', 'torch' or 'paper'")


def bias_init(init: Init, *, fan_in: int) -> jax.nn.initializers.Initializer:
  """How the bias starts: zero, or uniform in ``+-1 / sqrt(fan_in)`` (``torch``).

  Args:
    init: 'flax', 'torch' or 'paper'.
    fan_in: inputs of one output of the layer: C for a linear layer, 9C for a 3x3 convolution.

  Raises:
    ValueError: another name.

  >>> bias_init('flax', fan_in=9)(jax.random.key(0), (2,)).tolist()
  [0.0, 0.0]
  >>> bool(jnp.abs(bias_init('torch', fan_in=4)(jax.random.key(0), (999,))).max() > 0.49)
  True
  """
  if init in ('flax', 'paper'):
    return jax.nn.initializers.zeros
  if init == 'torch':
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
      key, shape, dtype, -bound, bound
    )
  raise ValueError(f"{init=} must be 'flax', 'torch' or 'paper'")
