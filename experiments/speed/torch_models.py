"""PyTorch's side: the same networks, written as its users write them, and their steps."""

import functools
from typing import Any

from experiments.errors import ConfigError
from experiments.speed.clock import Step

try:
  import torch
  from torch import nn
  from torch.nn import functional as F
except ImportError:
  raise ConfigError("this row needs PyTorch: pip install 'jattn[torch]'") from None


class SqueezeExcite(nn.Module):
  """Hu et al. 2018, reduction 16."""

  def __init__(self, channels: int):
    super().__init__()
    self.reduce = nn.Linear(channels, max(1, channels // 16))
    self.expand = nn.Linear(max(1, channels // 16), channels)

  def forward(self, x):
    gate = torch.sigmoid(self.expand(F.relu(self.reduce(x.mean((2, 3))))))
    return x * gate[:, :, None, None]


class Block(nn.Module):
  def __init__(self, inputs: int, features: int, stride: int, attention: bool):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.norm1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.norm2 = nn.BatchNorm2d(features)
    self.attention = SqueezeExcite(features) if attention else nn.Identity()
    self.stride, self.more = stride, features - inputs

  def forward(self, x):
    y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
    shortcut = x[:, :, :: self.stride, :: self.stride]
    if self.more:
      shortcut = F.pad(shortcut, (0, 0, 0, 0, self.more // 2, self.more - self.more // 2))
    return F.relu(self.attention(y) + shortcut)


class ResNet20(nn.Module):
  """He et al. 2015, section 4.2, padded shortcuts; with squeeze-and-excitation in every block."""

  def __init__(self, attention: bool = False):
    super().__init__()
    self.conv, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
    widths = (16, 16, 32, 64)
    self.blocks = nn.Sequential(
      *(
        Block(
          widths[stage] if index == 0 else features,
          features,
          2 if stage and not index else 1,
          attention,
        )
        for stage, features in enumerate(widths[1:])
        for index in range(3)
      )
    )
    self.logits = nn.Linear(64, 10)

  def forward(self, x):
    return self.logits(self.blocks(F.relu(self.norm(self.conv(x)))).mean((2, 3)))


class WideBlock(nn.Module):
  """Two 3x3 convolutions; where the shape changes the shortcut is a 1x1 convolution."""

  def __init__(self, inputs: int, features: int, stride: int):
    super().__init__()
    self.conv1 = nn.Conv2d(inputs, features, 3, stride, 1, bias=False)
    self.norm1 = nn.BatchNorm2d(features)
    self.conv2 = nn.Conv2d(features, features, 3, 1, 1, bias=False)
    self.norm2 = nn.BatchNorm2d(features)
    self.shortcut = nn.Identity()
    if stride > 1 or inputs != features:
      self.shortcut = nn.Sequential(
        nn.Conv2d(inputs, features, 1, stride, bias=False), nn.BatchNorm2d(features)
      )

  def forward(self, x):
    y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
    return F.relu(y + self.shortcut(x))


class ResNet18(nn.Module):
  """He et al. 2015, for large images, with projections; ten classes."""

  def __init__(self):
    super().__init__()
    self.conv, self.norm = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
    widths = (64, 64, 128, 256, 512)
    self.blocks = nn.Sequential(
      *(
        WideBlock(
          widths[stage] if index == 0 else features, features, 2 if stage and not index else 1
        )
        for stage, features in enumerate(widths[1:])
        for index in range(2)
      )
    )
    self.logits = nn.Linear(512, 10)

  def forward(self, x):
    x = F.max_pool2d(F.relu(self.norm(self.conv(x))), 3, 2, 1)
    return self.logits(self.blocks(x).mean((2, 3)))


def seed() -> nn.Module:
  """The corrected classifier of the tutorial; its logits alone."""
  from experiments.torch_twin import TwinClassifier

  class Logits(TwinClassifier):
    def forward(self, images):
      return super().forward(images)[0]

  return Logits()


def steps(
  make: Any, images: Any, labels: Any, *, half: bool = False, forward: bool = False
) -> tuple[dict[str, Step], dict[str, str]]:
  """A step of every setting: eager and compiled, both memory layouts.

  Args:
    make: gives the module, from [B, 3, H, W] to logits.
    images: [B, H, W, 3] float32, NumPy.
    labels: [B] int, NumPy.
    half: autocast to bfloat16.
    forward: the logits alone, in evaluation; otherwise a step of AdamW.

  Returns:
    The steps, warmed up, and for each setting that did not run why.
  """
  found: dict[str, Step] = {}
  missing: dict[str, str] = {}
  for layout in ('channels_last', 'contiguous_format'):
    for compiled in (False, True):
      name = f'torch {"compiled" if compiled else "eager"} {layout}'
      step = _step(make, images, labels, layout, compiled=compiled, half=half, forward=forward)
      try:
        step()
      except Exception as error:  # torch.compile fails in many ways: no compiler, no headers
        if not compiled:
          raise
        missing[name] = (str(error).strip() or type(error).__name__).partition('\n')[0][:120]
        continue
      found[name] = step
  return found, missing


def _step(make, images, labels, layout, *, compiled, half, forward) -> Step:
  memory = getattr(torch, layout)
  torch.manual_seed(0)
  model = make().to(memory_format=memory).train(not forward)
  x = torch.tensor(images).permute(0, 3, 1, 2).contiguous(memory_format=memory)
  y = torch.tensor(labels).long()
  autocast = functools.partial(torch.autocast, 'cpu', dtype=torch.bfloat16, enabled=half)

  def loss(x):
    with autocast():
      return F.cross_entropy(model(x).float(), y)

  def logits(x):
    with torch.no_grad(), autocast():
      return model(x)

  run = logits if forward else loss
  if compiled:
    run = torch.compile(run)
  if forward:
    return lambda: run(x)
  from experiments.torch_twin import make_optimizer

  optimizer = make_optimizer(model)

  def step():
    optimizer.zero_grad()
    value = run(x)
    value.backward()
    optimizer.step()
    return value.item()

  return step
