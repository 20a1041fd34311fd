"""Poolings: features [B, H, W, C] -> Pooled, one file each."""

from collections.abc import Callable

import flax.linen as nn

from jattn.names import look_up
from jattn.pooling.attention_aggregate import AttentionAggregate
from jattn.pooling.average import Average
from jattn.pooling.flatten import Flatten
from jattn.pooling.max import Max
from jattn.pooling.weighted_average import WeightedAverage

POOLINGS: dict[str, Callable[..., nn.Module]] = {
  'attention_aggregate': AttentionAggregate,
  'average': Average,
  'flatten': Flatten,
  'max': Max,
  'weighted_average': WeightedAverage,
}


def list_poolings() -> list[str]:
  """Returns the names that ``create_pooling`` takes, sorted."""
  return sorted(POOLINGS)


def create_pooling(name: str, **settings) -> nn.Module:
  """Returns the pooling called ``name``; ``settings`` are its fields.

  Raises:
    ValueError: no pooling has that name (the message suggests the nearest).
    TypeError: the pooling has no such field.

  >>> create_pooling('weighted_average', score='gated').score
  'gated'
  """
  return look_up(name, POOLINGS, noun='pooling')(**settings)


__all__ = [
  'POOLINGS',
  'AttentionAggregate',
  'Average',
  'Flatten',
  'Max',
  'WeightedAverage',
  'create_pooling',
  'list_poolings',
]
