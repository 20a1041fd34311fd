"""Fine-tuning with the first layers as they are."""

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

from jattn.training.depth import Frozen, Layers, frozen_mask


def freeze(apply: Callable[..., Any], place: str) -> Callable[..., Any]:
  """A Linen module's ``apply`` whose layers up to and with ``place`` are frozen in training.

  Their parameters get no gradient (and none is computed), and their batch norms normalise by the
  running statistics and leave these alone. Together with ``make_optimizer(..., freeze=place)``,
  which keeps weight decay and moments away, not a bit of them moves. Dropout and drop path in them
  go on.

  Args:
    apply: takes variables ``{'params': ..., ...}`` and keyword settings, ``train`` among them.
    place: 'stem', 'stage_S', 'stage_S/block_I' or 'backbone', see ``depth.Layers.through``.

  Raises:
    ValueError: when it is applied, if there is no such place.
  """

  def applied(variables: Mapping, *args: Any, train: bool, **settings: Any) -> Any:
    if not train:
      return apply(variables, *args, train=train, **settings)
    params = variables['params']
    still = frozen_mask(params, place)
    params = jax.tree.map(
      lambda leaf, stop: jax.lax.stop_gradient(leaf) if stop else leaf, params, still
    )
    with nn.intercept_methods(_keep_statistics(Frozen(Layers.of(params), place))):
      return apply({**variables, 'params': params}, *args, train=train, **settings)

  return applied


def _keep_statistics(frozen: Frozen) -> Callable[..., Any]:
  def intercept(next_call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
    module = context.module
    if isinstance(module, nn.BatchNorm) and frozen('/'.join(module.path)):
      # The module is of this trace alone; Linen has closed its fields, and `train` set this one.
      object.__setattr__(module, 'use_running_average', True)
    return next_call(*args, **kwargs)

  return intercept
