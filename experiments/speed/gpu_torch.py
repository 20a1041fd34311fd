"""What PyTorch runs in the rows for a GPU, in its own process (``experiments.speed.worker``)."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from experiments.errors import ConfigError
from experiments.speed import torch_models

try:
  import torch
  from torch.nn import attention as backends
except ImportError:
  raise ConfigError("this row needs PyTorch: pip install 'jattn[torch]'") from None

BACKENDS = ('flash', 'efficient', 'cudnn', 'math')


class Runner:
  """See ``worker.Framework``."""

  def __init__(self):
    self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision('high')

  def describe(self) -> dict[str, Any]:
    name = torch.cuda.get_device_name() if self.device == 'cuda' else 'cpu'
    return {'device': name, 'versions': {'torch': torch.__version__}}

  def prepare(self, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, settings in steps.items():
      settings = dict(settings)
      part = {'train': training, 'attention': attention}[settings.pop('part')]
      try:
        found[name] = part(device=self.device, **settings)
        found[name]()
      except Exception as error:  # out of memory, no such kernel: the others may run
        found[name] = error
    return found

  def wait(self) -> None:
    if self.device == 'cuda':
      torch.cuda.synchronize()

  def measure(self, part: str, **settings: Any) -> dict[str, Any]:
    if part != 'parameters':
      raise ValueError(f'{part}: there is no such part')
    return {'parameters': sum(p.numel() for p in _model(**settings).parameters())}


def _model(model: str) -> torch.nn.Module:
  return {'seed_classifier': torch_models.seed, 'resnet18': torch_models.ResNet18}[model]()


def training(
  model: str, batch: int, size: int, device: str, mode: str | None = 'max-autotune'
) -> Callable[[], Any]:
  """A step of fused AdamW under bfloat16 autocast, channels last; ``mode`` None is not compiled."""
  from experiments.torch_twin import make_optimizer

  torch.manual_seed(0)
  layout = torch.channels_last
  network = _model(model).to(device).to(memory_format=layout).train()
  x = torch.randn(batch, 3, size, size, device=device).contiguous(memory_format=layout)
  y = torch.randint(10, (batch,), device=device)

  def loss(x):
    with torch.autocast(device, dtype=torch.bfloat16):
      return torch.nn.functional.cross_entropy(network(x).float(), y)

  run = loss if mode is None else torch.compile(loss, mode=mode)
  optimizer = make_optimizer(network)

  def step():
    torch.compiler.cudagraph_mark_step_begin()
    optimizer.zero_grad(set_to_none=True)
    run(x).backward()
    optimizer.step()

  return step


def attention(
  backend: str, batch: int, positions: int, heads: int, widths: list[int], device: str
) -> Callable[[], Any]:
  """Output and gradients by q, k and v, bfloat16, by one backend."""
  width, value_width = widths
  draw = functools.partial(torch.randn, dtype=torch.bfloat16, device=device)
  q, k = (draw(batch, heads, positions, width).requires_grad_() for _ in range(2))
  v = draw(batch, heads, positions, value_width).requires_grad_()
  weights = draw(batch, heads, positions, value_width)
  kind = {
    'flash': backends.SDPBackend.FLASH_ATTENTION,
    'efficient': backends.SDPBackend.EFFICIENT_ATTENTION,
    'cudnn': backends.SDPBackend.CUDNN_ATTENTION,
    'math': backends.SDPBackend.MATH,
  }[backend]

  def step():
    with backends.sdpa_kernel(kind):
      out = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    return torch.autograd.grad(out, (q, k, v), weights)

  return step
