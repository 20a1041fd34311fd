"""The digits that scenes are made of, by class."""

import flax.struct
import jax
import jax.numpy as jnp

from jattn.data.scenes.draws import below


@flax.struct.dataclass
class Sprites:
  """The digits of one split, sorted by class.

  Attributes:
    images: [n, 28, 28] uint8.
    labels: [n] int32, rising.
    starts: [L + 1] int32; class c is the rows starts[c] .. starts[c + 1] - 1.
  """

  images: jax.Array
  labels: jax.Array
  starts: jax.Array

  @property
  def num_classes(self) -> int:
    return self.starts.shape[0] - 1

  def any(self, word: jax.Array) -> jax.Array:
    """A row, all equally likely."""
    return below(word, self.images.shape[0])

  def of(self, label: jax.Array, word: jax.Array) -> jax.Array:
    """A row of one class, all equally likely."""
    return self.starts[label] + below(word, self.starts[label + 1] - self.starts[label])

  def not_of(self, label: jax.Array, word: jax.Array) -> jax.Array:
    """A row of another class, all rows equally likely."""
    count = self.starts[label + 1] - self.starts[label]
    row = below(word, self.images.shape[0] - count)
    return jnp.where(row >= self.starts[label], row + count, row)
