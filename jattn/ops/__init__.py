"""Pure mathematics on arrays: no parameters, no Linen."""

from jattn.ops.attention import attend, attention_weights, weigh
from jattn.ops.attention_choice import choose_implementation
from jattn.ops.attention_rows import attention_rows
from jattn.ops.blocks import halo_blocks, join_blocks, split_blocks
from jattn.ops.channels import channel_kernel_size, round_channels
from jattn.ops.chunked_attention import chunked_attend
from jattn.ops.convolution import convolve
from jattn.ops.dense import dot
from jattn.ops.gating import gate
from jattn.ops.images import normalize, to_float
from jattn.ops.initializers import Init, bias_init, kernel_init
from jattn.ops.largest import largest
from jattn.ops.linear import linear_attend, linear_weights, scaled_exponentials
from jattn.ops.pooling import (
  attention_aggregate,
  flatten,
  global_average,
  global_max,
  unmasked,
  weighted_average,
)
from jattn.ops.relative import (
  relative_bias,
  relative_index,
  relative_index_1d,
  relative_logits,
  resize_relative,
  resize_relative_geometric,
)
from jattn.ops.reshape import for_each_image, place_as, reshape
from jattn.ops.resize import resize_positions
from jattn.ops.rotary import rotary_angles, rotate
from jattn.ops.softmax import accumulation_dtype, check_mask, masked_softmax
from jattn.ops.window import max_pool

__all__ = [
  'Init',
  'accumulation_dtype',
  'attend',
  'attention_aggregate',
  'attention_rows',
  'attention_weights',
  'bias_init',
  'channel_kernel_size',
  'check_mask',
  'choose_implementation',
  'chunked_attend',
  'convolve',
  'dot',
  'flatten',
  'for_each_image',
  'gate',
  'global_average',
  'global_max',
  'halo_blocks',
  'join_blocks',
  'kernel_init',
  'largest',
  'linear_attend',
  'linear_weights',
  'masked_softmax',
  'max_pool',
  'normalize',
  'place_as',
  'relative_bias',
  'relative_index',
  'relative_index_1d',
  'relative_logits',
  'reshape',
  'resize_positions',
  'resize_relative',
  'resize_relative_geometric',
  'rotary_angles',
  'rotate',
  'round_channels',
  'scaled_exponentials',
  'split_blocks',
  'to_float',
  'unmasked',
  'weigh',
  'weighted_average',
]
