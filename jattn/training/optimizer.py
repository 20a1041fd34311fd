"""Optimizers and schedules of image classification, from optax."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import optax

from jattn.training.depth import frozen_mask, layer_scales

Name = Literal['adamw', 'sgd']
Decay = Literal['cosine', 'linear', 'step', 'constant']


def make_schedule(
  learning_rate: float,
  *,
  steps: int,
  warmup_steps: int = 0,
  decay: Decay = 'cosine',
  end: float = 0.0,
  drops: Sequence[float] = (0.5, 0.75),
  factor: float = 0.1,
) -> optax.Schedule:
  """Linear warm-up from zero to ``learning_rate``, then a decay to ``end`` at step ``steps``.

  ``cosine``: Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts. ``step``: constant but
  for a multiplication by ``factor`` at each of ``drops`` (He et al. 2015, arXiv 1512.03385: by 0.1
  at a half and three quarters of CIFAR's 64,000 steps); ``end`` is not used.

  Args:
    learning_rate: peak.
    steps: of the whole run.
    warmup_steps: of them, the first.
    decay: 'cosine', 'linear', 'step' or 'constant'.
    end: rate at the end of 'cosine' and 'linear'.
    drops: for 'step', shares of the whole run, rising in (0, 1); a step is the first with the
      lower rate once so many lie before it.
    factor: for 'step'.

  Raises:
    ValueError: an unknown decay, a warm-up that is not shorter than the run, or drops that are not
      rising in (0, 1).

  >>> [round(float(make_schedule(1.0, steps=4, warmup_steps=2)(t)), 3) for t in range(5)]
  [0.0, 0.5, 1.0, 0.5, 0.0]
  """
  if not 0 <= warmup_steps < steps:
    raise ValueError(f'{warmup_steps=} must be at least 0 and less than {steps=}')
  remaining = steps - warmup_steps
  if decay == 'cosine':
    share = optax.cosine_decay_schedule(1.0, remaining)

    def after(step):
      return end + (learning_rate - end) * share(step)

  elif decay == 'linear':
    after = optax.linear_schedule(learning_rate, end, remaining)
  elif decay == 'step':
    if not drops or sorted({0.0, 1.0, *drops}) != [0.0, *drops, 1.0]:
      raise ValueError(f'{drops=} must rise in (0, 1)')
    scales: dict[int, float] = {}
    for place in (round(drop * steps) - warmup_steps for drop in drops):
      scales[place] = scales.get(place, 1.0) * factor  # two may meet in a short run
    after = optax.piecewise_constant_schedule(learning_rate, scales)
  elif decay == 'constant':
    after = optax.constant_schedule(learning_rate)
  else:
    raise ValueError(f"{decay=} must be 'cosine', 'linear', 'step' or 'constant'")
  if warmup_steps == 0:
    return after
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, after], [warmup_steps])


def decayed(params: Any) -> Any:
  """Which parameters weight decay touches: those of rank two and more, no bias and no norm.

  Tables of positions and tokens are of rank two or more and decay too.

  >>> decayed({'kernel': jax.numpy.ones((2, 3)), 'bias': jax.numpy.ones(3)})
  {'bias': False, 'kernel': True}
  """
  return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def scale_by_layer(decay: float) -> optax.GradientTransformation:
  """Updates times ``depth.layer_scales``: the nearer to the images, the smaller; none at 1.

  Last in a chain, so that decoupled weight decay is scaled with the rate, as in timm.

  Raises:
    ValueError: the decay is not in (0, 1].
  """
  if not 0 < decay <= 1:
    raise ValueError(f'layer {decay=} must be in (0, 1]')

  def scale(updates: Any, params: Any = None) -> Any:
    del params
    return jax.tree.map(lambda update, s: update * s, updates, layer_scales(updates, decay))

  return optax.stateless(scale)


def make_optimizer(
  name: Name,
  schedule: optax.ScalarOrSchedule,
  *,
  weight_decay: float = 0.0,
  decay_all: bool = False,
  momentum: float = 0.9,
  nesterov: bool = True,
  clip_norm: float | None = None,
  layer_decay: float = 1.0,
  freeze: str | None = None,
) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101) or SGD with momentum, with clipping by the global norm.

  Weight decay is decoupled for AdamW (``update = lr * (adam + decay * p)``), added to the gradient
  for SGD, and touches only what ``decayed`` says.

  Args:
    name: 'adamw' or 'sgd'.
    schedule: learning rate, a number or a function of the step.
    weight_decay: its strength.
    decay_all: whether it touches biases and norms too, as PyTorch's optimizers do by themselves.
    momentum: of SGD.
    nesterov: whether SGD's momentum is Nesterov's.
    clip_norm: the largest global norm of a gradient; None does not clip.
    layer_decay: see ``scale_by_layer``; 1 is one rate for all layers.
    freeze: parameters up to and with this place do not move, see ``depth.Layers.through``;
      ``training.freeze`` does the same for batch norm's statistics.

  Raises:
    ValueError: an unknown name, or a layer decay out of range; on ``init``, an unknown place.
  """
  mask = None if decay_all else decayed
  parts = [optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)]
  if name == 'adamw':
    parts.append(optax.adamw(schedule, weight_decay=weight_decay, mask=mask))
  elif name == 'sgd':
    parts.append(optax.add_decayed_weights(weight_decay, mask=mask))
    parts.append(optax.sgd(schedule, momentum=momentum, nesterov=nesterov))
  else:
    raise ValueError(f"optimizer {name=} must be 'adamw' or 'sgd'")
  if layer_decay != 1:
    parts.append(scale_by_layer(layer_decay))
  optimizer = optax.chain(*parts)
  if freeze is None:
    return optimizer

  def labels(params: Any) -> Any:
    return jax.tree.map(lambda f: 'frozen' if f else 'trained', frozen_mask(params, freeze))

  return optax.partition({'frozen': optax.set_to_zero(), 'trained': optimizer}, labels)
