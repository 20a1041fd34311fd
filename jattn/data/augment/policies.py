"""Which operations an image gets, and how strong: RandAugment and AutoAugment."""

import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jattn.data.augment.composition import check
from jattn.data.augment.operations import OPERATIONS, operate

Variant = Literal['paper', 'timm', 'timm_increasing']
Policy = Literal['cifar10']

PAPER = tuple(name for name in OPERATIONS if name not in ('invert', 'solarize_add'))
TIMM = tuple(name for name in OPERATIONS if name != 'identity')

# (operation, probability, magnitude 0..9) twice: the sub-policies found on CIFAR-10.
_CIFAR10 = (
  (('invert', 0.1, 7), ('contrast', 0.2, 6)),
  (('rotate', 0.7, 2), ('translate_x', 0.3, 9)),
  (('sharpness', 0.8, 1), ('sharpness', 0.9, 3)),
  (('shear_y', 0.5, 8), ('translate_y', 0.7, 9)),
  (('auto_contrast', 0.5, 8), ('equalize', 0.9, 2)),
  (('shear_y', 0.2, 7), ('posterize', 0.3, 7)),
  (('color', 0.4, 3), ('brightness', 0.6, 7)),
  (('sharpness', 0.3, 9), ('brightness', 0.7, 9)),
  (('equalize', 0.6, 5), ('equalize', 0.5, 1)),
  (('contrast', 0.6, 7), ('sharpness', 0.6, 5)),
  (('color', 0.7, 7), ('translate_x', 0.5, 8)),
  (('equalize', 0.3, 7), ('auto_contrast', 0.4, 8)),
  (('translate_y', 0.4, 3), ('sharpness', 0.2, 6)),
  (('brightness', 0.9, 6), ('color', 0.2, 8)),
  (('solarize', 0.5, 2), ('invert', 0.0, 3)),
  (('equalize', 0.2, 0), ('auto_contrast', 0.6, 0)),
  (('equalize', 0.2, 8), ('equalize', 0.6, 4)),
  (('color', 0.9, 9), ('equalize', 0.6, 6)),
  (('auto_contrast', 0.8, 4), ('solarize', 0.2, 8)),
  (('brightness', 0.1, 3), ('color', 0.7, 0)),
  (('solarize', 0.4, 5), ('auto_contrast', 0.9, 3)),
  (('translate_y', 0.9, 9), ('translate_y', 0.7, 9)),
  (('auto_contrast', 0.9, 2), ('solarize', 0.8, 3)),
  (('equalize', 0.8, 8), ('invert', 0.1, 3)),
  (('translate_y', 0.7, 9), ('auto_contrast', 0.9, 1)),
)


def rand_augment(
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  *,
  layers: int = 2,
  magnitude: float = 9.0,
  std: float = 0.0,
  variant: Variant = 'paper',
  fill: float = 128 / 255,
) -> tuple[jax.Array, jax.Array]:
  """A few random operations on each image, all as strong (Cubuk et al. 2019, arXiv 1909.13719).

  ================  =======================  ===========  ======================================
  variant           operations               probability  strength of colours and levels
  ================  =======================  ===========  ======================================
  paper             14, one is 'identity'    1            as the authors' code has it: factors
                                                          0.1..1.9, and posterize and solarize
                                                          strongest at magnitude 0
  timm              15: 'invert' and         1/2          the same
                    'solarize_add' instead
  timm_increasing   those 15                 1/2          all rise with the magnitude: factors
                                                          1 +- 0.9 (timm's '-inc1')
  ================  =======================  ===========  ======================================

  At magnitude 10: 30 degrees, a slope of 0.3, 0.45 of the width or height; either way each.

  Args:
    key: random key.
    images: [B, H, W, 3] float in [0, 1].
    labels: [B, L] float, returned as they are.
    layers: N, operations one after another.
    magnitude: M, 0..10.
    std: of a normal deviation from M, for each image and layer (timm's 'mstd').
    variant: see above.
    fill: what comes in from beyond the border, in [0, 1].

  Raises:
    ValueError: a setting out of range.
  """
  check(images, labels)
  if layers < 1 or not 0 <= magnitude <= 10 or std < 0:
    raise ValueError(f'{layers=} must be at least 1, {magnitude=} in 0..10, {std=} at least 0')
  if variant not in ('paper', 'timm', 'timm_increasing'):
    raise ValueError(f"{variant=} must be 'paper', 'timm' or 'timm_increasing'")
  operation, argument = draw_rand_augment(
    key, (layers, images.shape[0]), magnitude=magnitude, std=std, variant=variant
  )
  return operate_in_turn(images, operation, argument, fill=fill), labels


def draw_rand_augment(
  key: jax.Array, shape: tuple[int, int], *, magnitude: float, std: float, variant: Variant
) -> tuple[jax.Array, jax.Array]:
  """Operations and their arguments, both [N, B]."""
  drawn = jax.random.uniform(key, (4, *shape))
  names = PAPER if variant == 'paper' else TIMM
  numbers = jnp.array([OPERATIONS.index(name) for name in names])
  operation = numbers[jnp.minimum((drawn[0] * len(names)).astype(jnp.int32), len(names) - 1)]
  if variant != 'paper':
    operation = jnp.where(drawn[1] < 0.5, operation, OPERATIONS.index('identity'))
  # The normal deviate of a uniform number: a second call to jax.random would be slow to compile.
  deviation = std * math.sqrt(2) * jax.lax.erf_inv(2 * drawn[2] - 1) if std else 0.0
  strength = jnp.clip(magnitude + deviation, 0, 10) / 10
  sign = jnp.where(drawn[3] < 0.5, 1.0, -1.0)
  scale = 'signed' if variant == 'timm_increasing' else 'level'
  return operation, arguments(operation, jnp.broadcast_to(strength, shape), sign, scale=scale)


def auto_augment(
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  *,
  policy: Policy = 'cifar10',
  fill: float = 128 / 255,
) -> tuple[jax.Array, jax.Array]:
  """One of the found pairs of operations on each image (Cubuk et al. 2018, arXiv 1805.09501).

  'cifar10' is the 25 sub-policies of the paper's appendix; each of the two operations has its own
  probability and magnitude. Magnitude 9 is 30 degrees, a slope of 0.3, 150/331 of the width or
  height, a factor of 1 +- 0.9, 4 bits, and a threshold of 0.

  Args:
    key: random key.
    images: [B, H, W, 3] float in [0, 1].
    labels: [B, L] float, returned as they are.
    policy: 'cifar10'.
    fill: what comes in from beyond the border, in [0, 1].

  Raises:
    ValueError: another policy.
  """
  check(images, labels)
  if policy != 'cifar10':
    raise ValueError(f"{policy=} must be 'cifar10'")
  operation, argument = draw_auto_augment(key, images.shape[0])
  return operate_in_turn(images, operation, argument, fill=fill), labels


def draw_auto_augment(key: jax.Array, batch: int) -> tuple[jax.Array, jax.Array]:
  """Operations and their arguments, both [2, B]."""
  drawn = jax.random.uniform(key, (5, batch))
  chosen = jnp.minimum((drawn[0] * len(_CIFAR10)).astype(jnp.int32), len(_CIFAR10) - 1)
  table = np.array([[(OPERATIONS.index(n), p, m) for n, p, m in pair] for pair in _CIFAR10])
  number, probability, magnitude = (jnp.asarray(table[..., i].T)[:, chosen] for i in range(3))
  operation = jnp.where(drawn[1:3] < probability, number, OPERATIONS.index('identity'))
  sign = jnp.where(drawn[3:5] < 0.5, 1.0, -1.0)
  operation = operation.astype(jnp.int32)
  return operation, arguments(operation, magnitude.astype(jnp.float32) / 9, sign, scale='found')


def arguments(
  operation: jax.Array,
  strength: jax.Array,
  sign: jax.Array,
  *,
  scale: Literal['level', 'signed', 'found'],
) -> jax.Array:
  """What `operate` takes for a strength in [0, 1], on one of three scales.

  'level': the authors' RandAugment; 'signed': timm's increasing one; 'found': AutoAugment.
  """
  far = 150 / 331 if scale == 'found' else 0.45
  bits, threshold = jnp.floor(4 * strength), jnp.floor(256 * strength)
  if scale == 'level':
    factor = 0.1 + 1.8 * strength
  else:
    factor = 1 + sign * 0.9 * strength
    threshold = 256 - (threshold if scale == 'signed' else 256 * strength)
    bits = 4 - bits if scale == 'signed' else 8 - jnp.round(4 * strength)
  values = {
    'rotate': sign * 30 * strength,
    'shear_x': sign * 0.3 * strength,
    'shear_y': sign * 0.3 * strength,
    'translate_x': sign * far * strength,
    'translate_y': sign * far * strength,
    'posterize': bits,
    'solarize': threshold,
    'solarize_add': jnp.floor(110 * strength),
    'color': factor,
    'contrast': factor,
    'brightness': factor,
    'sharpness': factor,
  }
  chosen = jnp.zeros_like(strength)
  for name, value in values.items():
    chosen = jnp.where(operation == OPERATIONS.index(name), value, chosen)
  return chosen


def operate_in_turn(
  images: jax.Array, operation: jax.Array, argument: jax.Array, *, fill: float
) -> jax.Array:
  """The operations [N, B], one layer after another; compiled once, however many layers."""

  def layer(images: jax.Array, chosen: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    return operate(images, *chosen, fill=fill), None

  return jax.lax.scan(layer, images, (operation, argument))[0]
