"""Widths of reduced layers, and of windows over the channels."""

import math


def round_channels(
  channels: float, divisor: int, *, minimum: int | None = None, limit: float = 0.9
) -> int:
  """The multiple of ``divisor`` nearest to ``channels``, halves up, never below ``minimum``.

  If that falls below ``limit * channels`` it is one divisor more; ``limit=0`` never rounds up so.
  The rule of MobileNetV2's reference code (Sandler et al. 2018, arXiv 1801.04381), which timm uses
  for every reduced width.

  Args:
    channels: the width wanted.
    divisor: what the result is a multiple of.
    minimum: the least result; None is ``divisor``.
    limit: share of ``channels`` that the result may not fall below.

  >>> [round_channels(c / 16, 8, limit=0) for c in (64, 160, 192, 320)]
  [8, 8, 16, 24]
  >>> round_channels(160 / 16, 8)
  16
  """
  rounded = int(channels + divisor / 2) // divisor * divisor
  rounded = max(divisor if minimum is None else minimum, rounded)
  return rounded + divisor if rounded < limit * channels else rounded


def channel_kernel_size(channels: int, *, gamma: float = 2, beta: float = 1) -> int:
  """How many neighbouring channels a convolution along the channels sees.

  The odd number nearest to ``(log2 C + beta) / gamma``, halfway up (Wang et al. 2020, ECA-Net,
  arXiv 1910.03151), never below 3: for C < 8 the formula alone sees a channel and no neighbour.

  >>> [channel_kernel_size(c) for c in (4, 64, 128, 1024, 2048)]
  [3, 3, 5, 5, 7]
  """
  size = abs(math.log2(channels) + beta) / gamma
  return max(3, 2 * int(size / 2) + 1)
