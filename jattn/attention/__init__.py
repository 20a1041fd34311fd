"""Mechanisms: features [B, H, W, C] -> Attended, one file each."""

from collections.abc import Callable

import flax.linen as nn

from jattn.attention.residual import Residual
from jattn.attention.self_attention import SelfAttention
from jattn.names import look_up

MECHANISMS: dict[str, Callable[..., nn.Module]] = {
  'self_attention': SelfAttention,
}


def list_attentions() -> list[str]:
  """Returns the names that ``create_attention`` takes, sorted."""
  return sorted(MECHANISMS)


def create_attention(name: str, **settings) -> nn.Module:
  """Returns the mechanism called ``name``; ``settings`` are its fields.

  Raises:
    ValueError: no mechanism has that name (the message suggests the nearest).
    TypeError: the mechanism has no such field.

  >>> create_attention('self_attention', num_heads=4).num_heads
  4
  """
  return look_up(name, MECHANISMS, noun='attention')(**settings)


__all__ = ['MECHANISMS', 'Residual', 'SelfAttention', 'create_attention', 'list_attentions']
