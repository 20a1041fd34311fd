"""Training runs that have names: the tutorial's, and published recipes at their published length.

Every preset ending in ``_short`` is the same network in minutes on two CPU cores. It says whether
all is well, not what the network can do.
"""

import dataclasses

from experiments.settings import AugmentConfig, OptimizerConfig, TrainConfig

_DIGITS = TrainConfig(
  epochs=8,
  batch_size=32,
  label_smoothing=0.1,
  ema_decay=0.99,
  log_every=125,
  augment=AugmentConfig(crop_padding=3),
)
_CIFAR10 = TrainConfig(data='tfds:cifar10', augment=AugmentConfig(crop_padding=4, flip=True))
_ARMS = {
  '': 'seed_classifier',
  '_no_attention': 'seed_classifier_no_attention',
  '_weighted_average': 'seed_classifier_weighted_average',
}

# torchvision's RandomCrop(32, padding=4), as nearly every CIFAR recipe has it.
_CROP_AND_FLIP = AugmentConfig(crop_padding=4, crop_border='black', flip=True)

# He et al. 2015, section 4.2, arXiv 1512.03385: 64,000 steps of 128 images, published 91.25% for
# ResNet-20. They too held 5,000 of the 50,000 training images out.
_RESNET20 = TrainConfig(
  model='resnet20',
  data='tfds:cifar10',
  steps=64_000,
  log_every=200,
  optimizer=OptimizerConfig(
    name='sgd',
    learning_rate=0.1,
    warmup=0.0,
    decay='step',
    drops=(0.5, 0.75),
    weight_decay=1e-4,
    decay_all=True,
    nesterov=False,
    clip_norm=None,
  ),
  augment=_CROP_AND_FLIP,
)
# Four passes: a rate that rises and falls once, and Nesterov's momentum.
_RESNET20_SHORT = dataclasses.replace(
  _RESNET20,
  steps=None,
  epochs=4,
  log_every=50,
  optimizer=OptimizerConfig(name='sgd', learning_rate=0.2, warmup=0.2, weight_decay=5e-4),
)

# Hassani et al. 2021, arXiv 2104.05704, by the authors' script for CIFAR-10, published 89.17%: 200
# epochs, five of warm-up. There AutoAugment comes before the crop, here after the flip.
_CCT_2 = TrainConfig(
  model='cct_2_3x2_32',
  data='tfds:cifar10',
  epochs=200,
  label_smoothing=0.1,
  log_every=200,
  optimizer=OptimizerConfig(
    learning_rate=5e-4, warmup=5 / 200, weight_decay=3e-2, decay_all=True, clip_norm=None
  ),
  augment=dataclasses.replace(_CROP_AND_FLIP, auto='cifar10'),
)
_CCT_2_SHORT = dataclasses.replace(
  _CCT_2,
  epochs=4,
  log_every=50,
  optimizer=OptimizerConfig(learning_rate=2e-3, warmup=0.2, weight_decay=3e-2),
  augment=_CROP_AND_FLIP,
)

# What timm's recipes for photographs have in common, for a folder of one's own; --init-from and a
# tenth of the rate fine-tune. Not a published recipe of any one network.
_PHOTOGRAPHS = TrainConfig(
  model='resnet50',
  data='folder:photographs',
  image_size=224,
  crop_ratio=0.875,
  resample='bicubic',
  normalization='imagenet',
  epochs=100,
  label_smoothing=0.1,
  ema_decay=0.9999,
  optimizer=OptimizerConfig(warmup=0.05),
  augment=AugmentConfig(
    crop_area=0.08,
    flip=True,
    rand_layers=2,
    rand_std=0.5,
    rand_variant='timm_increasing',
    erasing=0.25,
    mixup=0.8,
    cutmix=1.0,
  ),
)

# Cluttered translated MNIST of Mnih et al. 2014, arXiv 1406.6247, out of the embedded digits.
# Nothing is augmented, so that every image is the scene whose truth is known.
_CLUTTERED = TrainConfig(
  model='scene_classifier',
  epochs=2,
  batch_size=32,
  optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.01),
)

PRESETS: dict[str, TrainConfig] = {
  **{
    preset + arm: dataclasses.replace(config, model=model)
    for preset, config in (('digits', _DIGITS), ('cifar10', _CIFAR10))
    for arm, model in _ARMS.items()
  },
  'resnet20_cifar10': _RESNET20,
  'resnet20_cifar10_short': _RESNET20_SHORT,
  # The same recipe, so that the difference is the mechanism's.
  'se_resnet20_cifar10': dataclasses.replace(_RESNET20, attention='squeeze_excite'),
  'se_resnet20_cifar10_short': dataclasses.replace(_RESNET20_SHORT, attention='squeeze_excite'),
  'cct_2_cifar10': _CCT_2,
  'cct_2_cifar10_short': _CCT_2_SHORT,
  'photographs': _PHOTOGRAPHS,
  'cluttered60': dataclasses.replace(_CLUTTERED, data='scenes:cluttered?size=60&clutter=4'),
  'cluttered100': dataclasses.replace(_CLUTTERED, data='scenes:cluttered?size=100&clutter=8'),
}
