"""The classifier: backbone, attention, pooling, fully connected layers."""

from collections.abc import Mapping, Sequence

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.layers import Dropout, dense, layer_norm
from jattn.layouts import Layouts, prefixed
from jattn.ops import Init, accumulation_dtype
from jattn.types import AttentionMap, Pooled, Prediction


class Head(nn.Module):
  """Fully connected layers: each hidden one with ReLU and dropout, then one to the classes.

  Without hidden layers the dropout is on the vector itself.

  Attributes:
    num_classes: L.
    hidden: widths of the hidden layers; ``()`` is a linear classifier.
    dropout: probability of dropping a unit in training.
    norm: whether the vector goes through a layer norm (epsilon 1e-6) first.
    deviation: standard deviation of the normal numbers that kernels start as; None leaves them to
      ``initialization``.
    initialization: how the layers start, as Flax or as PyTorch starts them.
    dtype: what is computed in; None is the input's type. Logits are float32 at least.
  """

  num_classes: int
  hidden: Sequence[int] = ()
  dropout: float = 0.0
  initialization: Init = 'flax'
  dtype: jnp.dtype | None = None
  norm: bool = False
  deviation: float | None = None

  @nn.compact
  def __call__(self, vector: jax.Array, *, train: bool) -> jax.Array:
    """[B, C] -> [B, L]; needs a ``dropout`` key when training with dropout."""
    chex.assert_rank(vector, 2)
    x = layer_norm(name='norm', dtype=self.dtype)(vector) if self.norm else vector
    if not self.hidden:
      x = Dropout(self.dropout, deterministic=not train)(x)
    for index, width in enumerate(self.hidden):
      x = nn.relu(self._dense(f'hidden_{index}', width, x))
      x = Dropout(self.dropout, deterministic=not train)(x)
    logits = self._dense('logits', self.num_classes, x)
    return logits.astype(accumulation_dtype(logits))

  def _dense(self, name: str, features: int, x: jax.Array) -> jax.Array:
    return dense(
      features,
      inputs=x.shape[-1],
      name=name,
      initialization=self.initialization,
      start=None if self.deviation is None else nn.initializers.normal(self.deviation),
      dtype=self.dtype,
    )(x)


class Classifier(nn.Module):
  """Features, attention, pooling, fully connected layers: ``head(pool(attention(backbone(x))))``.

  Every map of every part comes back under a slash path: ``backbone/...``, ``attention_0/weights``,
  ``pool/weights``. ``attention=()`` is the control arm.

  Attributes:
    backbone: images -> Attended.
    pool: features -> Pooled; None takes the vector that the backbone made itself (a class token).
    head: vector -> logits.
    attention: mechanisms applied one after another to the backbone's features.
    image_size: side of the square images it takes, or None for any size (a flattened map needs
      one).
    channels: channels of the images it takes.
  """

  backbone: nn.Module
  pool: nn.Module | None
  head: nn.Module
  attention: Sequence[nn.Module] = ()
  image_size: int | None = None
  channels: int = 3

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Prediction:
    """[B, H, W, C] floating -> logits [B, L] and maps.

    Raises:
      ValueError: the images have another rank, size, type or number of channels, or there is no
        pooling and the backbone makes no vector.
    """
    self._check_images(images)
    backbone = self.backbone(images, train=train)
    maps = _under('backbone', backbone.maps)
    features = backbone.features
    chex.assert_rank(features, 4)
    for index, mechanism in enumerate(self.attention):
      attended = mechanism(features, train=train)
      features = attended.features
      chex.assert_rank(features, 4)
      maps |= _under(f'attention_{index}', attended.maps)
    if self.pool is None and backbone.vector is None:
      raise ValueError(
        f'{type(self.backbone).__name__} makes no vector of its own; choose a pooling'
      )
    pooled = Pooled(backbone.vector) if self.pool is None else self.pool(features, train=train)
    chex.assert_shape(pooled.vector, (images.shape[0], None))
    maps |= _under('pool', pooled.maps)
    logits = self.head(pooled.vector, train=train)
    chex.assert_shape(logits, (images.shape[0], None))
    return Prediction(logits, maps)

  def features(self, images: jax.Array, *, train: bool) -> tuple[jax.Array, ...]:
    """The feature map after every stage of the backbone, [B, H_s, W_s, C_s], finest first.

    Called as ``model.apply(variables, images, train=False, method='features')``, or through
    ``jattn.models.features``.

    Raises:
      ValueError: the images are not what the model takes, or the backbone has no stages.
    """
    self._check_images(images)
    stages = self.backbone(images, train=train).stages
    if not stages:
      raise ValueError(f'{type(self.backbone).__name__} does not return its stages')
    return stages

  @property
  def timm_names(self) -> Layouts:
    """How timm calls and stores every layer, see ``jattn.layouts``."""
    return self.names('timm')

  @nn.nowrap
  def names(self, style: str) -> Layouts:
    """How every layer is called and stored elsewhere; a part that is not there is left out.

    Args:
      style: 'timm', or of a vision transformer 'big_vision', 'big_vision_loop' or
        'big_vision_scan', see ``jattn.backbones.ViT``.
    """
    # In every file of big_vision's the head and the pooling have the same names.
    where = 'timm' if style == 'timm' else 'big_vision'
    pool = {'timm': 'attn_pool.', 'big_vision': 'MAPHead_0/'}[where]
    names = prefixed(getattr(self.backbone, f'{style}_names', {}), path='backbone/')
    names |= prefixed(getattr(self.pool, f'{where}_names', {}), path='pool/', name=pool)
    return names | prefixed(getattr(self.backbone, f'{where}_head', {}), path='head/')

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


def _under(path: str, maps: Mapping[str, AttentionMap]) -> dict[str, AttentionMap]:
  return {f'{path}/{name}': value for name, value in maps.items()}


def features(
  model: Classifier, variables: Mapping, images: jax.Array, *, train: bool = False
) -> tuple[jax.Array, ...]:
  """The feature map after every stage of ``model``, [B, H_s, W_s, C_s], finest first; pure.

  Raises:
    ValueError: the images are not what the model takes, or the backbone has no stages.
  """
  return model.apply(variables, images, train=train, method='features')
