"""From a feature map to one vector an image, as mathematics."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jattn.ops.largest import largest
from jattn.ops.reshape import reshape
from jattn.ops.softmax import accumulation_dtype, check_mask

Reduction = Literal['average', 'max', 'both']


def unmasked(features: jax.Array, mask: jax.Array | None) -> jax.Array:
  """Features that are zero at masked positions whatever stood there, infinities and NaN too.

  Args:
    features: [B, H, W, C].
    mask: bool [B, H, W], True where a position takes part; None masks nothing.

  Returns:
    [B, H, W, C].

  Raises:
    ValueError: the mask is not bool, or of another shape.

  >>> unmasked(jnp.array([[[[1.0], [jnp.nan]]]]), jnp.array([[[True, False]]])).tolist()
  [[[[1.0], [0.0]]]]
  """
  chex.assert_rank(features, 4)
  if mask is None:
    return features
  check_mask(mask, features.shape[:3])
  return jnp.where(mask[..., None], features, 0)


def global_average(features: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
  """The mean over positions: ``v = (1/N) sum_i h_i``, over the unmasked ones if a mask is given.

  Args:
    features: [B, H, W, C].
    mask: bool [B, H, W], True where a position takes part.

  Returns:
    [B, C] in the type of ``features``, accumulated in float32; zeros where all is masked.

  >>> global_average(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
  [[1.5]]
  """
  chex.assert_rank(features, 4)
  dtype = accumulation_dtype(features)
  if mask is None:
    return jnp.mean(features, axis=(1, 2), dtype=dtype).astype(features.dtype)
  total = jnp.sum(unmasked(features, mask), axis=(1, 2), dtype=dtype)
  count = jnp.maximum(jnp.sum(mask, axis=(1, 2), dtype=dtype), 1)
  return (total / count[:, None]).astype(features.dtype)


def global_max(features: jax.Array, *, mask: jax.Array | None = None) -> jax.Array:
  """The maximum over positions, channel by channel; over the unmasked ones if a mask is given.

  Its gradient is shared evenly by the positions that have it, see ``largest``.

  Args:
    features: [B, H, W, C].
    mask: bool [B, H, W], True where a position takes part.

  Returns:
    [B, C] in the type of ``features``; zeros where all is masked.

  >>> global_max(jnp.arange(4.0).reshape(1, 2, 2, 1)).tolist()
  [[3.0]]
  """
  chex.assert_rank(features, 4)
  if mask is None:
    return largest(features, (1, 2))
  check_mask(mask, features.shape[:3])
  kept = largest(jnp.where(mask[..., None], features, -jnp.inf), (1, 2))
  return jnp.where(jnp.any(mask, axis=(1, 2))[:, None], kept, 0).astype(features.dtype)


def flatten(features: jax.Array) -> jax.Array:
  """All positions side by side, channels last: [B, H, W, C] -> [B, H*W*C].

  >>> flatten(jnp.zeros((2, 3, 5, 7))).shape
  (2, 105)
  """
  chex.assert_rank(features, 4)
  return reshape(features, features.shape[0], -1)


def weighted_average(features: jax.Array, weights: jax.Array) -> jax.Array:
  """Weighted-average attention: ``v = sum_i alpha_i h_i``.

  Args:
    features: [B, H, W, C], the h_i.
    weights: [B, M, H, W], the alpha_i of M maps; each should sum to one over H, W.

  Returns:
    [B, M, C] in the type of ``features``, accumulated in float32.

  >>> h = jnp.arange(4.0).reshape(1, 2, 2, 1)
  >>> weighted_average(h, jnp.array([[[[0.0, 0.0], [0.5, 0.5]]]])).tolist()
  [[[2.5]]]
  """
  _check_map(features, weights)
  dtype = accumulation_dtype(features)
  out = jnp.einsum('bmhw,bhwc->bmc', weights.astype(dtype), features.astype(dtype))
  return out.astype(features.dtype)


def attention_aggregate(
  features: jax.Array, weights: jax.Array, *, reduce: Reduction = 'average'
) -> jax.Array:
  """Aggregation: the weights times the feature map, element by element, then pooled.

  ``average``: ``(1/N) sum_i alpha_i h_i``, which is ``weighted_average / N``;
  ``max``: ``max_i alpha_i h_i``, channel by channel; ``both``: the two side by side.

  Args:
    features: [B, H, W, C].
    weights: [B, M, H, W].
    reduce: 'average', 'max' or 'both'.

  Returns:
    [B, M, C], or [B, M, 2C] for 'both' (average first), in the type of ``features``.

  Raises:
    ValueError: ``reduce`` is something else.

  >>> h = jnp.arange(4.0).reshape(1, 2, 2, 1)
  >>> attention_aggregate(h, jnp.full((1, 1, 2, 2), 0.25), reduce='both').tolist()
  [[[0.375, 0.75]]]
  """
  _check_map(features, weights)
  if reduce not in ('average', 'max', 'both'):
    raise ValueError(f"{reduce=} must be 'average', 'max' or 'both'")
  dtype = accumulation_dtype(features)
  weighted = weights.astype(dtype)[..., None] * features.astype(dtype)[:, None]
  pooled = []
  if reduce in ('average', 'both'):
    pooled.append(jnp.mean(weighted, axis=(2, 3)))
  if reduce in ('max', 'both'):
    pooled.append(largest(weighted, (2, 3)))
  return jnp.concatenate(pooled, axis=-1).astype(features.dtype)


def _check_map(features: jax.Array, weights: jax.Array) -> None:
  chex.assert_rank((features, weights), 4)
  chex.assert_equal(features.shape[:1] + features.shape[1:3], weights.shape[:1] + weights.shape[2:])
