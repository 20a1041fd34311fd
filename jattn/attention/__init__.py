"""Mechanisms: features [B, H, W, C] -> Attended, one file each.

``train`` is keyword-only, so transformations of Linen's take a function that sets it:
``nn.remat(lambda mechanism, x: mechanism(x, train=True))(mechanism, x)``, ``nn.vmap`` likewise.
"""

from collections.abc import Callable

import flax.linen as nn

from jattn.attention.axial import AxialAttention
from jattn.attention.bam import Bam
from jattn.attention.bottleneck import BottleneckAttention
from jattn.attention.cbam import Cbam
from jattn.attention.circular_eca import CircularEfficientChannelAttention
from jattn.attention.coordinate import CoordinateAttention
from jattn.attention.criss_cross import CrissCrossAttention
from jattn.attention.cross_covariance import CrossCovarianceAttention
from jattn.attention.differential import DifferentialAttention
from jattn.attention.eca import EfficientChannelAttention
from jattn.attention.effective_squeeze_excite import EffectiveSqueezeExcite
from jattn.attention.gather_excite import GatherExcite
from jattn.attention.global_context import GlobalContext
from jattn.attention.halo import HaloAttention
from jattn.attention.lambda_layer import LambdaLayer
from jattn.attention.large_kernel import LargeKernel
from jattn.attention.linear_attention import LinearAttention
from jattn.attention.lite_mla import LiteMla
from jattn.attention.non_local import NonLocal
from jattn.attention.residual import Residual
from jattn.attention.selective_kernel import SelectiveKernel
from jattn.attention.self_attention import SelfAttention
from jattn.attention.separable import SeparableAttention
from jattn.attention.simam import SimAM
from jattn.attention.split_attention import SplitAttention
from jattn.attention.squeeze_excite import SqueezeExcite
from jattn.attention.token_learner import TokenLearner
from jattn.attention.triplet import TripletAttention
from jattn.attention.window import WindowAttention
from jattn.names import build

MECHANISMS: dict[str, Callable[..., nn.Module]] = {
  'axial': AxialAttention,
  'bam': Bam,
  'bottleneck': BottleneckAttention,
  'cbam': Cbam,
  'circular_eca': CircularEfficientChannelAttention,
  'coordinate': CoordinateAttention,
  'criss_cross': CrissCrossAttention,
  'cross_covariance': CrossCovarianceAttention,
  'differential': DifferentialAttention,
  'eca': EfficientChannelAttention,
  'effective_squeeze_excite': EffectiveSqueezeExcite,
  'gather_excite': GatherExcite,
  'global_context': GlobalContext,
  'halo': HaloAttention,
  'lambda': LambdaLayer,
  'large_kernel': LargeKernel,
  'linear_attention': LinearAttention,
  'lite_mla': LiteMla,
  'non_local': NonLocal,
  'selective_kernel': SelectiveKernel,
  'self_attention': SelfAttention,
  'separable': SeparableAttention,
  'simam': SimAM,
  'split_attention': SplitAttention,
  'squeeze_excite': SqueezeExcite,
  'token_learner': TokenLearner,
  'triplet': TripletAttention,
  'window': WindowAttention,
}


def list_attentions() -> list[str]:
  """Returns the names that ``create_attention`` takes, sorted."""
  return sorted(MECHANISMS)


def create_attention(name: str, **settings) -> nn.Module:
  """Returns the mechanism called ``name``; ``settings`` are its fields.

  Raises:
    ValueError: no mechanism has that name, or it has no such field (the message suggests the
      nearest).

  >>> create_attention('self_attention', num_heads=4).num_heads
  4
  """
  return build(name, MECHANISMS, noun='attention', settings=settings)


__all__ = [
  'MECHANISMS',
  'AxialAttention',
  'Bam',
  'BottleneckAttention',
  'Cbam',
  'CircularEfficientChannelAttention',
  'CoordinateAttention',
  'CrissCrossAttention',
  'CrossCovarianceAttention',
  'DifferentialAttention',
  'EffectiveSqueezeExcite',
  'EfficientChannelAttention',
  'GatherExcite',
  'GlobalContext',
  'HaloAttention',
  'LambdaLayer',
  'LargeKernel',
  'LinearAttention',
  'LiteMla',
  'NonLocal',
  'Residual',
  'SelectiveKernel',
  'SelfAttention',
  'SeparableAttention',
  'SimAM',
  'SplitAttention',
  'SqueezeExcite',
  'TokenLearner',
  'TripletAttention',
  'WindowAttention',
  'create_attention',
  'list_attentions',
]
