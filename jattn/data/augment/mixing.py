"""Two images become one, and their labels with them."""

import jax
import jax.numpy as jnp

from jattn.data.augment import boxes
from jattn.data.augment.composition import check


def mixup(
  key: jax.Array, images: jax.Array, labels: jax.Array, *, alpha: float = 0.2
) -> tuple[jax.Array, jax.Array]:
  """Blends each image and its labels with its partner's (Zhang et al. 2017, arXiv 1710.09412).

  x = lam * x_i + (1 - lam) * x_j and y = lam * y_i + (1 - lam) * y_j with lam ~ Beta(alpha, alpha)
  drawn for each example and j = B - 1 - i.

  Args:
    key: random key.
    images: [B, H, W, C] float.
    labels: [B, L] float.
    alpha: above 0; the greater, the nearer lam is to one half.

  Raises:
    ValueError: alpha not above 0.
  """
  check(images, labels)
  _check_alpha(alpha=alpha)
  return blend(images, labels, draw_lam(key, images.shape[0], alpha=alpha))


def draw_lam(key: jax.Array, batch: int, *, alpha: float | jax.Array) -> jax.Array:
  """[B] of Beta(alpha, alpha)."""
  # Beta(1, 1) is the uniform distribution, and jax.random.beta takes a second to compile on a CPU.
  if isinstance(alpha, int | float) and alpha == 1:
    return jax.random.uniform(key, (batch,))
  return jax.random.beta(key, alpha, alpha, (batch,))


def blend(images: jax.Array, labels: jax.Array, lam: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Weight `lam` [B] of each image and its labels, the rest of its partner's."""
  weight = lam[:, None, None, None].astype(images.dtype)
  return weight * images + (1 - weight) * images[::-1], _blend_labels(labels, lam)


def cutmix(
  key: jax.Array, images: jax.Array, labels: jax.Array, *, alpha: float = 1.0
) -> tuple[jax.Array, jax.Array]:
  """Pastes a rectangle of its partner into each image (Yun et al. 2019, arXiv 1905.04899).

  The rectangle has floor(H * sqrt(1 - lam)) rows and floor(W * sqrt(1 - lam)) columns, with
  lam ~ Beta(alpha, alpha), around a centre that is uniform over the pixels, and is clipped at the
  border. y = (1 - p) * y_i + p * y_j, where p is the part of the image that was pasted: counted
  after clipping, not 1 - lam; j = B - 1 - i.

  Args:
    key: random key.
    images: [B, H, W, C] float.
    labels: [B, L] float.
    alpha: above 0.

  Raises:
    ValueError: alpha not above 0.
  """
  check(images, labels)
  _check_alpha(alpha=alpha)
  return paste(images, labels, draw_patches(key, images.shape[:3], alpha=alpha))


def draw_patches(key: jax.Array, shape: tuple[int, int, int], *, alpha: float) -> jax.Array:
  """Boxes [B, 4] as `random_erasing` has them, of lam ~ Beta(alpha, alpha)."""
  lam_key, centre_key = jax.random.split(key)
  lam = draw_lam(lam_key, shape[0], alpha=alpha)
  return patches(lam, jax.random.uniform(centre_key, (2, shape[0])), shape[1:])


def patches(lam: jax.Array, centres: jax.Array, shape: tuple[int, int]) -> jax.Array:
  """Boxes [B, 4] of lam [B] and centres [2, B] in parts of H and of W."""
  edges = []
  for centre, length in zip(centres, shape, strict=True):
    extent = jnp.floor(length * jnp.sqrt(1 - lam)).astype(jnp.int32)
    begin = boxes.whole(centre, length) - extent // 2
    edges.append((jnp.clip(begin, 0, length), jnp.clip(begin + extent, 0, length)))
  (top, bottom), (left, right) = edges
  return jnp.stack([top, left, bottom, right], axis=1)


def paste(images: jax.Array, labels: jax.Array, drawn: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Images whose boxes [B, 4] hold their partners' pixels; labels by the area kept."""
  within = boxes.inside(drawn, images.shape[1:3])[..., None]
  return jnp.where(within, images[::-1], images), _blend_labels(labels, _kept(drawn, images.shape))


def mixup_or_cutmix(
  key: jax.Array,
  images: jax.Array,
  labels: jax.Array,
  *,
  mixup: float = 0.8,
  cutmix: float = 1.0,
  probability: float = 1.0,
  switch: float = 0.5,
) -> tuple[jax.Array, jax.Array]:
  """Either of the two for each image: as timm switches, in its mode 'elem'.

  With `probability` an image is mixed at all; then with `switch` by CutMix, otherwise by mixup.
  The alphas are each one's own.

  Args:
    key: random key.
    images: [B, H, W, C] float.
    labels: [B, L] float.
    mixup: alpha of mixup, above 0.
    cutmix: alpha of CutMix, above 0.
    probability: in [0, 1].
    switch: in [0, 1].

  Raises:
    ValueError: a setting out of range.
  """
  check(images, labels)
  _check_alpha(mixup=mixup, cutmix=cutmix)
  if not 0 <= probability <= 1 or not 0 <= switch <= 1:
    raise ValueError(f'{probability=} and {switch=} must be in [0, 1]')
  lam, pasted, centres = draw_mixes(
    key, images.shape[0], alphas=(mixup, cutmix), probability=probability, switch=switch
  )
  return mix(images, labels, lam, pasted, centres)


def draw_mixes(
  key: jax.Array, batch: int, *, alphas: tuple[float, float], probability: float, switch: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """lam [B] (1 where nothing is mixed), whether it is CutMix [B], and centres [2, B]."""
  lam_key, key = jax.random.split(key)
  drawn = jax.random.uniform(key, (4, batch))
  pasted = drawn[1] < switch
  same = alphas[0] == alphas[1]
  alpha = alphas[0] if same else jnp.where(pasted, alphas[1], alphas[0])
  lam = draw_lam(lam_key, batch, alpha=alpha)
  return jnp.where(drawn[0] < probability, lam, 1), pasted, drawn[2:]


def mix(
  images: jax.Array, labels: jax.Array, lam: jax.Array, pasted: jax.Array, centres: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """`paste` where `pasted` [B], with a box of lam [B] and centres [2, B]; `blend` elsewhere."""
  drawn = patches(lam, centres, images.shape[1:3])
  within = boxes.inside(drawn, images.shape[1:3])[..., None]
  weight = jnp.where(pasted[:, None, None, None], 1 - within, lam[:, None, None, None])
  weight = weight.astype(images.dtype)
  mixed = weight * images + (1 - weight) * images[::-1]
  return mixed, _blend_labels(labels, jnp.where(pasted, _kept(drawn, images.shape), lam))


def _kept(drawn: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  pixels = (drawn[:, 2] - drawn[:, 0]) * (drawn[:, 3] - drawn[:, 1])
  return 1 - pixels.astype(jnp.float32) / (shape[1] * shape[2])


def _blend_labels(labels: jax.Array, lam: jax.Array) -> jax.Array:
  weight = lam[:, None].astype(labels.dtype)
  return weight * labels + (1 - weight) * labels[::-1]


def _check_alpha(**alphas: float) -> None:
  for name, alpha in alphas.items():
    if not alpha > 0:
      raise ValueError(f'{name}={alpha} must be above 0')
