"""What a training run can be told, as frozen dataclasses; imports neither jax nor jattn.

The sentences under the fields are what ``--help`` prints.
"""

import dataclasses
import pathlib
from typing import Literal


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How the parameters move."""

  name: Literal['adamw', 'sgd'] = 'adamw'
  """adamw, or sgd with momentum."""
  learning_rate: float = 1e-3
  """Peak learning rate, reached after the warm-up."""
  warmup: float = 0.1
  """Share of the steps in which the rate rises linearly from zero, in [0, 1)."""
  decay: Literal['cosine', 'linear', 'step', 'constant'] = 'cosine'
  """How the rate falls after the warm-up: to zero, or to a tenth at each of --optimizer.drops."""
  drops: tuple[float, ...] = (0.5, 0.75)
  """For decay step: the shares of all steps at which the rate falls to a tenth."""
  weight_decay: float = 0.05
  """Decoupled weight decay (adamw) or L2 (sgd)."""
  decay_all: bool = False
  """Decay biases and norms too, as PyTorch does by itself; they are left alone otherwise."""
  momentum: float = 0.9
  """Momentum of sgd; adamw ignores it."""
  nesterov: bool = True
  """Whether the momentum of sgd is Nesterov's."""
  clip_norm: float | None = 1.0
  """Largest global norm of a gradient; None does not clip."""
  layer_decay: float = 1.0
  """Each layer's rate is so many times that of the layer above it, in (0, 1]; 1 is one rate."""


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """What happens to training images on the device, in this order."""

  crop_area: float | None = None
  """Random resized crop: the least share of the area that is kept, in (0, 1]; None is off."""
  crop_aspect: float = 4 / 3
  """Random resized crop: the largest ratio of its sides, either way, at least 1."""
  crop_padding: int = 0
  """Pad by so many pixels and crop back at random; 0 is off."""
  crop_border: Literal['reflect', 'black'] = 'reflect'
  """What the padding shows: the image mirrored, or black."""
  flip: bool = False
  """Mirror left and right with probability one half."""
  auto: Literal['none', 'cifar10'] = 'none'
  """AutoAugment's policy, as it was found on that data set; none is off."""
  rand_layers: int = 0
  """RandAugment: how many random operations on each image; 0 is off."""
  rand_magnitude: float = 9.0
  """RandAugment: how strong they are, in 0..10."""
  rand_std: float = 0.0
  """RandAugment: standard deviation of that strength from image to image."""
  rand_variant: Literal['paper', 'timm', 'timm_increasing'] = 'paper'
  """RandAugment: 14 operations; or 15, half of them left out; the last are timm's -inc1."""
  erasing: float = 0.0
  """Probability of erasing a random rectangle; 0 is off."""
  mixup: float = 0.0
  """Alpha of mixup; 0 is off. With CutMix on too, each image gets one of the two."""
  cutmix: float = 0.0
  """Alpha of CutMix; 0 is off."""
  mix_probability: float = 1.0
  """Probability that mixup or CutMix, whichever is on, is applied to an image, in [0, 1]."""
  mix_switch: float = 0.5
  """Probability of CutMix where both are on, in [0, 1]."""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """One training run."""

  out: pathlib.Path | None = None
  """Run directory; None is runs/MODEL-DATA-seedN. The same command again resumes it."""
  model: str = 'seed_classifier'
  """Name of the model, as jattn.list_models() gives them."""
  attention: str | None = None
  """Mechanism in the slot, of jattn.list_attentions(); None is the model's, none takes it out."""
  pool: str | None = None
  """Pooling of the model, of jattn.list_poolings(); None is the model's own."""
  drop_path: float | None = None
  """Probability of dropping the last block's branch, rising from the first's 0; None is its own."""
  mimetic: float | None = None
  """How strongly query and key start as each other; 0 is not at all, None is the model's own."""
  init_from: pathlib.Path | None = None
  """Start from these weights, see jattn.weights; for other classes the last layer starts anew."""
  freeze: str | None = None
  """Leave these layers as they start: stem, stage_1 (and before), stage_1/block_2 or backbone."""
  data: str = 'digits'
  """digits, tfds:NAME, folder:PATH, npz:PATH or scenes:KIND."""
  data_dir: pathlib.Path | None = None
  """Where prepared TFDS data lies; None is TFDS_DATA_DIR or TFDS's own place."""
  in_memory: bool | None = None
  """Decode all images before training, or each as it is needed; None is up to 2 GiB in memory."""
  workers: int = 0
  """Processes that decode images as they are needed; 0 is the threads of this one."""
  image_size: int | None = None
  """Side of the square images that the model takes; None is that of the data set."""
  crop_ratio: float = 1.0
  """For evaluation: side over what the shorter side is resized to, in (0, 1]; timm's crop_pct."""
  resample: Literal['bilinear', 'bicubic'] = 'bilinear'
  """How images are resized, both with antialiasing."""
  store_size: int | None = None
  """Side of what random resized crops are taken from; None is --image-size over --crop-ratio."""
  normalization: Literal['data', 'imagenet', 'half'] = 'data'
  """Mean and deviation of the colours: of the training images, of ImageNet's, or one half each."""
  epochs: float = 10.0
  """Passes over the training images; --steps wins over it."""
  steps: int | None = None
  """Optimizer steps; None follows from --epochs."""
  batch_size: int = 128
  """Images in a step, over all devices."""
  seed: int = 0
  """Decides initialisation, order of images, augmentation and dropout."""
  precision: Literal['float32', 'bfloat16'] = 'float32'
  """What layers compute in; parameters stay float32."""
  label_smoothing: float = 0.0
  """Label mass spread evenly over the classes, in [0, 1)."""
  ema_decay: float | None = None
  """Decay of a moving average of the weights, which is then what is evaluated; None is off."""
  accumulate: int = 1
  """Cut each batch into so many parts, to save memory."""
  steps_per_call: int | None = None
  """Updates in one call of the device; None is 1 on CPU and 8 elsewhere."""
  fsdp: int = 1
  """Devices that share one copy of the parameters."""
  distributed: bool = False
  """One run of several processes: give each, on every host, this command and a shared --out."""
  max_skips: int = 3
  """Stop after so many updates in a row were skipped because something was not finite."""
  log_every: int = 50
  """Steps between two lines of training metrics."""
  evaluate_every: int | None = None
  """Steps between evaluations on the choose split; None is one epoch."""
  checkpoint_every: int | None = None
  """Steps between checkpoints; None is one epoch."""
  keep: int = 2
  """Newest checkpoints to keep, besides the best on the choose split."""
  explain: int = 0
  """Images whose maps go to TensorBoard at each evaluation and to explain/ at the end; 0 is off."""
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
