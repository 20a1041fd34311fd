"""A part of a model that a user names: a string, or a string and settings."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from jattn.attention import create_attention
from jattn.pooling import create_pooling

# A name, or a name and its settings: {'name': 'squeeze_excite', 'reduction': 8}.
Part = str | Mapping[str, Any]


def make_attention(
  part: Part | None, *, dtype: jnp.dtype | None = None
) -> Callable[[], nn.Module] | None:
  """What makes the mechanism that ``part`` names, for the slot of a block; None for None.

  Raises:
    ValueError: a wrong name or setting, told now and not inside a trace.
  """
  if part is None:
    return None
  make = functools.partial(_create, create_attention, part, dtype)
  make()
  return make


def make_pooling(part: Part, *, dtype: jnp.dtype | None = None) -> nn.Module:
  """The pooling that ``part`` names, computing in ``dtype`` where it has such a field."""
  return _create(create_pooling, part, dtype)


def _create(create: Callable[..., nn.Module], part: Part, dtype: jnp.dtype | None) -> nn.Module:
  settings = {'name': part} if isinstance(part, str) else dict(part)
  module = create(settings.pop('name'), **settings)
  if dtype is not None and getattr(module, 'dtype', dtype) is None:
    module = module.clone(dtype=dtype)
  return module
