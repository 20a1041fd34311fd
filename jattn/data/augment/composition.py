"""What an augmentation is, and how several become one."""

from collections.abc import Callable

import chex
import jax

Augmentation = Callable[[jax.Array, jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


def compose(*functions: Augmentation) -> Augmentation:
  """One augmentation that applies the given ones in turn, each with a key of its own."""

  def composed(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    for index, function in enumerate(functions):
      images, labels = function(jax.random.fold_in(key, index), images, labels)
    return images, labels

  return composed


def of_images(function: Callable[[jax.Array], jax.Array]) -> Augmentation:
  """A function of images alone, such as a normalisation, as an augmentation that draws nothing."""

  def applied(key: jax.Array, images: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    del key
    return function(images), labels

  return applied


def check(images: jax.Array, labels: jax.Array) -> None:
  """Images [B, H, W, C] and labels [B, L], both floating.

  Raises:
    AssertionError: they are not.
  """
  chex.assert_rank([images, labels], [4, 2])
  chex.assert_type([images, labels], float)
  chex.assert_equal_shape_prefix([images, labels], 1)
