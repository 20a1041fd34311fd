"""Poolings: features [B, H, W, C] -> Pooled, one file each."""

from collections.abc import Callable

import flax.linen as nn

from jattn.names import build
from jattn.pooling.attention_aggregate import AttentionAggregate
from jattn.pooling.attention_pool_2d import AttentionPool2d
from jattn.pooling.average import Average
from jattn.pooling.average_max import AverageMax
from jattn.pooling.class_attention import ClassAttention
from jattn.pooling.flatten import Flatten
from jattn.pooling.generalised_mean import GeneralisedMean
from jattn.pooling.latent_attention_pool import LatentAttentionPool
from jattn.pooling.log_sum_exp import LogSumExp
from jattn.pooling.max import Max
from jattn.pooling.seq_pool import SeqPool
from jattn.pooling.sim_pool import SimPool
from jattn.pooling.weighted_average import WeightedAverage

POOLINGS: dict[str, Callable[..., nn.Module]] = {
  'attention_aggregate': AttentionAggregate,
  'attention_pool_2d': AttentionPool2d,
  'average': Average,
  'average_max': AverageMax,
  'class_attention': ClassAttention,
  'flatten': Flatten,
  'generalised_mean': GeneralisedMean,
  'latent_attention_pool': LatentAttentionPool,
  'log_sum_exp': LogSumExp,
  'max': Max,
  'seq_pool': SeqPool,
  'sim_pool': SimPool,
  'weighted_average': WeightedAverage,
}


def list_poolings() -> list[str]:
  """Returns the names that ``create_pooling`` takes, sorted."""
  return sorted(POOLINGS)


def create_pooling(name: str, **settings) -> nn.Module:
  """Returns the pooling called ``name``; ``settings`` are its fields.

  Raises:
    ValueError: no pooling has that name, or it has no such field (the message suggests the
      nearest).

  >>> create_pooling('weighted_average', score='gated').score
  'gated'
  """
  return build(name, POOLINGS, noun='pooling', settings=settings)


__all__ = [
  'POOLINGS',
  'AttentionAggregate',
  'AttentionPool2d',
  'Average',
  'AverageMax',
  'ClassAttention',
  'Flatten',
  'GeneralisedMean',
  'LatentAttentionPool',
  'LogSumExp',
  'Max',
  'SeqPool',
  'SimPool',
  'WeightedAverage',
  'create_pooling',
  'list_poolings',
]
