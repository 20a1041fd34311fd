"""Augmentation on the device, inside the jitted step.

Every function is pure, `(key, images, labels) -> (images, labels)`, with images [B, H, W, C] float
and labels [B, L] float, soft, of mass one; settings are keyword-only, so that `functools.partial`
fixes them and `compose` strings them together. Each example draws for itself. Where two images are
mixed the partner of example i is example B-1-i: the order of the batch is random already, and a
reversal costs no sort.

What is drawn and what is done with it are apart: a `draw_...` takes the key, and the function that
takes the drawn numbers is deterministic.

The usual order, as timm has it: crop, flip, `rand_augment` or `auto_augment` (both need images in
[0, 1]), then the normalisation, erasing (whose fill is then the mean), and mixing.

>>> import functools, jax, jax.numpy as jnp
>>> from jattn.ops import normalize
>>> photographs = compose(
...   functools.partial(random_resized_crop, size=4),
...   flip,
...   functools.partial(rand_augment, layers=2, magnitude=9.0),
...   of_images(functools.partial(normalize, mean=(0.5,) * 3, std=(0.5,) * 3)),
...   functools.partial(random_erasing, probability=0.25),
...   functools.partial(mixup_or_cutmix, mixup=0.8, cutmix=1.0),
... )
>>> stored, labels = jnp.full((2, 6, 6, 3), 0.5), jnp.eye(2)
>>> images, soft = jax.jit(photographs)(jax.random.key(0), stored, labels)
>>> images.shape, soft.sum(axis=1).tolist()
((2, 4, 4, 3), [1.0, 1.0])
"""

from jattn.data.augment.composition import Augmentation, compose, of_images
from jattn.data.augment.crop import flip, pad_and_crop, random_resized_crop
from jattn.data.augment.erasing import random_erasing
from jattn.data.augment.mixing import cutmix, mixup, mixup_or_cutmix
from jattn.data.augment.operations import OPERATIONS, operate
from jattn.data.augment.policies import auto_augment, rand_augment

__all__ = [
  'OPERATIONS',
  'Augmentation',
  'auto_augment',
  'compose',
  'cutmix',
  'flip',
  'mixup',
  'mixup_or_cutmix',
  'of_images',
  'operate',
  'pad_and_crop',
  'rand_augment',
  'random_erasing',
  'random_resized_crop',
]
