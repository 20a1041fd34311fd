"""Optimizers and schedules of image classification, from optax."""

from typing import Any, Literal

import jax
import optax

Name = Literal['adamw', 'sgd']
Decay = Literal['cosine', 'linear', 'constant']


def make_schedule(
  learning_rate: float,
  *,
  steps: int,
  warmup_steps: int = 0,
  decay: Decay = 'cosine',
  end: float = 0.0,
) -> optax.Schedule:
  """Linear warm-up from zero to ``learning_rate``, then a decay to ``end`` at step ``steps``.

  ``cosine``: Loshchilov and Hutter 2016, arXiv 1608.03983, without restarts.

  Raises:
    ValueError: an unknown decay, or a warm-up that is not shorter than the run.

  >>> [round(float(make_schedule(1.0, steps=4, warmup_steps=2)(t)), 3) for t in range(5)]
  [0.0, 0.5, 1.0, 0.5, 0.0]
  """
  if not 0 <= warmup_steps < steps:
    raise ValueError(f'{warmup_steps=} must be at least 0 and less than {steps=}')
  remaining = steps - warmup_steps
  if decay == 'cosine':
    after = optax.cosine_decay_schedule(learning_rate, remaining, alpha=end / learning_rate)
  elif decay == 'linear':
    after = optax.linear_schedule(learning_rate, end, remaining)
  elif decay == 'constant':
    after = optax.constant_schedule(learning_rate)
  else:
    raise ValueError(f"{decay=} must be 'cosine', 'linear' or 'constant'")
  if warmup_steps == 0:
    return after
  warmup = optax.linear_schedule(0.0, learning_rate, warmup_steps)
  return optax.join_schedules([warmup, after], [warmup_steps])


def decayed(params: Any) -> Any:
  """Which parameters weight decay touches: those of rank two and more, so no bias and no norm.

  >>> decayed({'kernel': jax.numpy.ones((2, 3)), 'bias': jax.numpy.ones(3)})
  {'bias': False, 'kernel': True}
  """
  return jax.tree.map(lambda leaf: leaf.ndim >= 2, params)


def make_optimizer(
  name: Name,
  schedule: optax.ScalarOrSchedule,
  *,
  weight_decay: float = 0.0,
  momentum: float = 0.9,
  clip_norm: float | None = None,
) -> optax.GradientTransformation:
  """AdamW (arXiv 1711.05101) or SGD with Nesterov momentum, with clipping by the global norm.

  Weight decay is decoupled for AdamW (``update = lr * (adam + decay * p)``), added to the gradient
  for SGD, and touches only what ``decayed`` says.

  Args:
    name: 'adamw' or 'sgd'.
    schedule: learning rate, a number or a function of the step.
    weight_decay: its strength.
    momentum: of SGD.
    clip_norm: the largest global norm of a gradient; None does not clip.

  Raises:
    ValueError: an unknown name.
  """
  clip = optax.identity() if clip_norm is None else optax.clip_by_global_norm(clip_norm)
  if name == 'adamw':
    return optax.chain(clip, optax.adamw(schedule, weight_decay=weight_decay, mask=decayed))
  if name == 'sgd':
    return optax.chain(
      clip,
      optax.add_decayed_weights(weight_decay, mask=decayed),
      optax.sgd(schedule, momentum=momentum, nesterov=True),
    )
  raise ValueError(f"optimizer {name=} must be 'adamw' or 'sgd'")
