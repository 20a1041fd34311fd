"""The classifier and the models that have names."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.attention import SelfAttention, create_attention
from jattn.backbones import ConvStack, ResNetCifar
from jattn.layers import Norm, dense
from jattn.names import build
from jattn.ops import Init
from jattn.pooling import Flatten, WeightedAverage, create_pooling
from jattn.types import AttentionMap, Prediction


class Head(nn.Module):
  """Fully connected layers: each hidden one with ReLU and dropout, then one to the classes.

  Without hidden layers the dropout is on the vector itself.

  Attributes:
    num_classes: L.
    hidden: widths of the hidden layers; ``()`` is a linear classifier.
    dropout: probability of dropping a unit in training.
    initialization: how the layers start, as Flax or as PyTorch starts them.
    dtype: what is computed in; None is the input's type. Logits are float32 at least.
  """

  num_classes: int
  hidden: Sequence[int] = ()
  dropout: float = 0.0
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None

  @nn.compact
  def __call__(self, vector: jax.Array, *, train: bool) -> jax.Array:
    """[B, C] -> [B, L]; needs a ``dropout`` key when training with dropout."""
    chex.assert_rank(vector, 2)
    x = vector
    if not self.hidden:
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    for index, width in enumerate(self.hidden):
      x = nn.relu(self._dense(f'hidden_{index}', width, x))
      x = nn.Dropout(self.dropout, deterministic=not train)(x)
    logits = self._dense('logits', self.num_classes, x)
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

  def _dense(self, name: str, features: int, x: jax.Array) -> jax.Array:
    return dense(
      features,
      inputs=x.shape[-1],
      name=name,
      initialization=self.initialization,
      dtype=self.dtype,
    )(x)


class Classifier(nn.Module):
  """Features, attention, pooling, fully connected layers: ``head(pool(attention(backbone(x))))``.

  Every map of every part comes back under a slash path: ``backbone/...``, ``attention_0/weights``,
  ``pool/weights``. ``attention=()`` is the control arm.

  Attributes:
    backbone: images -> Attended.
    pool: features -> Pooled.
    head: vector -> logits.
    attention: mechanisms applied one after another to the backbone's features.
    image_size: side of the square images it takes, or None for any size (a flattened map needs
      one).
    channels: channels of the images it takes.
  """

  backbone: nn.Module
  pool: nn.Module
  head: nn.Module
  attention: Sequence[nn.Module] = ()
  image_size: int | None = None
  channels: int = 3

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Prediction:
    """[B, H, W, C] floating -> logits [B, L] and maps.

    Raises:
      ValueError: the images have another rank, size, type or number of channels.
    """
    self._check_images(images)
    attended = self.backbone(images, train=train)
    maps = _under('backbone', attended.maps)
    features = attended.features
    chex.assert_rank(features, 4)
    for index, mechanism in enumerate(self.attention):
      attended = mechanism(features, train=train)
      features = attended.features
      chex.assert_rank(features, 4)
      maps |= _under(f'attention_{index}', attended.maps)
    pooled = self.pool(features, train=train)
    chex.assert_shape(pooled.vector, (images.shape[0], None))
    maps |= _under('pool', pooled.maps)
    logits = self.head(pooled.vector, train=train)
    chex.assert_shape(logits, (images.shape[0], None))
    return Prediction(logits, maps)

  def _check_images(self, images: jax.Array) -> None:
    if images.ndim != 4:
      raise ValueError(f'images must be [B, H, W, C], got shape {images.shape}')
    if not jnp.issubdtype(images.dtype, jnp.floating):
      raise ValueError(f'images must be floating, got {images.dtype}; divide bytes by 255 first')
    _, height, width, channels = images.shape
    if channels != self.channels:
      raise ValueError(f'images must have {self.channels} channels (last axis), got {channels}')
    if self.image_size is not None and (height, width) != (self.image_size,) * 2:
      size = f'{self.image_size}x{self.image_size}'
      raise ValueError(f'this model takes {size} images, got {height}x{width}')


def seed_classifier(
  num_classes: int = 10,
  *,
  image_size: int = 32,
  widths: Sequence[int] = (64, 128, 256),
  hidden: int = 512,
  dropout: float = 0.5,
  initialization: Init = 'torch',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """The tutorial's classifier: three stages, one-head self-attention, flatten, two linear layers.

  d_k = widths[-1] / 8, d_v = widths[-1], no output projection, no residual, and
  PyTorch's initialisation, since the tutorial is written in PyTorch. 2,555,850 parameters
  for 10 classes of 32x32x3 images.
  """
  attention = SelfAttention(
    qk_features=widths[-1] // 8, v_features=widths[-1], initialization=initialization, dtype=dtype
  )
  return Classifier(
    backbone=ConvStack(widths, initialization, dtype),
    attention=(attention,),
    pool=Flatten(),
    head=Head(num_classes, (hidden,), dropout, initialization, dtype),
    image_size=image_size,
  )


def seed_classifier_no_attention(
  num_classes: int = 10,
  *,
  image_size: int = 32,
  widths: Sequence[int] = (64, 128, 256),
  hidden: int = 512,
  dropout: float = 0.5,
  initialization: Init = 'torch',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """The control: the tutorial's classifier with the attention taken out. 2,473,610 parameters."""
  return Classifier(
    backbone=ConvStack(widths, initialization, dtype),
    pool=Flatten(),
    head=Head(num_classes, (hidden,), dropout, initialization, dtype),
    image_size=image_size,
  )


def seed_classifier_weighted_average(
  num_classes: int = 10,
  *,
  widths: Sequence[int] = (64, 128, 256),
  hidden: int = 512,
  dropout: float = 0.5,
  initialization: Init = 'torch',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """The tutorial's features under weighted-average attention (gated score), any image size."""
  return Classifier(
    backbone=ConvStack(widths, initialization, dtype),
    pool=WeightedAverage(score='gated', dtype=dtype),
    head=Head(num_classes, (hidden,), dropout, initialization, dtype),
  )


# A name, or a name and its settings: {'name': 'squeeze_excite', 'reduction': 8}.
Part = str | Mapping[str, Any]


def _create(create: Callable[..., nn.Module], part: Part, dtype: jnp.dtype | None) -> nn.Module:
  """The module that ``part`` names, computing in ``dtype`` where it has such a field."""
  settings = {'name': part} if isinstance(part, str) else dict(part)
  module = create(settings.pop('name'), **settings)
  if dtype is not None and getattr(module, 'dtype', dtype) is None:
    module = module.clone(dtype=dtype)
  return module


def resnet_cifar(
  num_classes: int = 10,
  *,
  depth: int = 20,
  attention: Part | None = None,
  pool: Part = 'average',
  widths: Sequence[int] = (16, 32, 64),
  norm: Norm = 'batch',
  shortcut: Literal['pad', 'projection'] = 'pad',
  zero_last: bool = False,
  dropout: float = 0.0,
  initialization: Init = 'paper',
  dtype: jnp.dtype | None = None,
) -> Classifier:
  """A residual network for 32x32 images (any size works) with attention in every block.

  Args:
    num_classes: L.
    depth: 6n + 2.
    attention: a name of ``list_attentions()`` or that and its settings; None is the control arm.
    pool: a name of ``list_poolings()`` or that and its settings.
    widths, norm, shortcut, zero_last, initialization, dtype: as for ``ResNetCifar``.
    dropout: probability of dropping a feature before the linear layer.
  """
  make_attention = None
  if attention is not None:
    make_attention = functools.partial(_create, create_attention, attention, dtype)
    make_attention()  # so that a wrong name or setting is told now and not inside a trace
  return Classifier(
    backbone=ResNetCifar(
      depth, widths, make_attention, norm, shortcut, zero_last, initialization, dtype
    ),
    pool=_create(create_pooling, pool, dtype),
    head=Head(num_classes, dropout=dropout, dtype=dtype),
  )


MODELS: dict[str, Callable[..., Classifier]] = {
  'resnet20': functools.partial(resnet_cifar, depth=20),
  'resnet32': functools.partial(resnet_cifar, depth=32),
  'resnet56': functools.partial(resnet_cifar, depth=56),
  'seed_classifier': seed_classifier,
  'seed_classifier_no_attention': seed_classifier_no_attention,
  'seed_classifier_weighted_average': seed_classifier_weighted_average,
}


def list_models() -> list[str]:
  """Returns the names that ``create_model`` takes, sorted."""
  return sorted(MODELS)


def create_model(name: str, *, num_classes: int, **settings) -> Classifier:
  """Returns the model called ``name`` with ``num_classes`` outputs.

  Raises:
    ValueError: no model has that name, or it has no such setting (the message suggests the
      nearest).

  >>> create_model('seed_classifier', num_classes=10).image_size
  32
  """
  if num_classes < 2:
    raise ValueError(f'{num_classes=} must be at least 2')
  settings = {'num_classes': num_classes, **settings}
  return build(name, MODELS, noun='model', settings=settings)


def _under(path: str, maps: Mapping[str, AttentionMap]) -> dict[str, AttentionMap]:
  return {f'{path}/{name}': value for name, value in maps.items()}
