"""The augmentations of a configuration, in their order."""

import functools
from collections.abc import Callable

import jax

from experiments.settings import AugmentConfig
from jattn.data import augment


def make_augmentation(
  settings: AugmentConfig, size: int, prepare: Callable[[jax.Array], jax.Array]
) -> augment.Augmentation:
  """The augmentations that are switched on, one after another, with ``prepare`` among them.

  Operations on colours want images in [0, 1], so they stand before it; erasing stands after it, so
  that its zero is the mean.

  Args:
    settings: which, and how strong.
    size: the side that random resized crops are resized to.
    prepare: normalises images in [0, 1].
  """
  chosen: list[augment.Augmentation] = []
  if settings.crop_area is not None:
    aspect = (1 / settings.crop_aspect, settings.crop_aspect)
    area = (settings.crop_area, 1.0)
    chosen.append(
      functools.partial(augment.random_resized_crop, size=size, area=area, aspect=aspect)
    )
  if settings.crop_padding:
    padding, border = settings.crop_padding, settings.crop_border
    chosen.append(functools.partial(augment.pad_and_crop, padding=padding, border=border))
  if settings.flip:
    chosen.append(augment.flip)
  if settings.auto != 'none':
    chosen.append(functools.partial(augment.auto_augment, policy=settings.auto))
  if settings.rand_layers:
    chosen.append(
      functools.partial(
        augment.rand_augment,
        layers=settings.rand_layers,
        magnitude=settings.rand_magnitude,
        std=settings.rand_std,
        variant=settings.rand_variant,
      )
    )
  chosen.append(augment.of_images(prepare))
  if settings.erasing:
    chosen.append(functools.partial(augment.random_erasing, probability=settings.erasing))
  if settings.mixup or settings.cutmix:
    chosen.append(_mixing(settings))
  return augment.compose(*chosen)


def _mixing(settings: AugmentConfig) -> augment.Augmentation:
  """Mixup, CutMix, or for each image one of the two."""
  # With one of them off the other is never switched to, and its alpha says nothing.
  switch = settings.mix_switch if settings.mixup and settings.cutmix else float(not settings.mixup)
  return functools.partial(
    augment.mixup_or_cutmix,
    mixup=settings.mixup or settings.cutmix,
    cutmix=settings.cutmix or settings.mixup,
    probability=settings.mix_probability,
    switch=switch,
  )
