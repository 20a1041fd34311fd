"""Pure mathematics on arrays: no parameters, no Linen."""

from jattn.ops.attention import attend, attention_weights, weigh
from jattn.ops.images import normalize, to_float
from jattn.ops.initializers import Init, bias_init, kernel_init
from jattn.ops.pooling import (
  attention_aggregate,
  flatten,
  global_average,
  global_max,
  weighted_average,
)
from jattn.ops.softmax import accumulation_dtype, masked_softmax
from jattn.ops.window import max_pool

__all__ = [
  'Init',
  'accumulation_dtype',
  'attend',
  'attention_aggregate',
  'attention_weights',
  'bias_init',
  'flatten',
  'global_average',
  'global_max',
  'kernel_init',
  'masked_softmax',
  'max_pool',
  'normalize',
  'to_float',
  'weigh',
  'weighted_average',
]
