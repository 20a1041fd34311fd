"""What is explained: a model at images, and for each image the class that is asked about."""

import dataclasses
import functools
from collections.abc import Callable, Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.explain.network import Network, open_network


@dataclasses.dataclass(frozen=True)
class Subject:
  """A model at images, and the class of each that is asked about.

  Attributes:
    model: called ``model.apply(variables, images, train=False)``, with ``logits`` in what returns.
    variables: its parameters and statistics.
    images: [B, H, W, C] floating.
    targets: [B] int32.
    key: of what is drawn, or None.
  """

  model: nn.Module
  variables: Mapping
  images: jax.Array
  targets: jax.Array
  key: jax.Array | None = None

  def logits(self, images: jax.Array) -> jax.Array:
    """[..., H, W, C] -> [..., L]."""
    flat = images.reshape(-1, *images.shape[-3:])
    logits = self.model.apply(self.variables, flat, train=False).logits
    return logits.reshape(*images.shape[:-3], -1)

  def scores(self, images: jax.Array) -> jax.Array:
    """The logit of the target of each image: [..., B, H, W, C] -> [..., B]."""
    return self.pick(self.logits(images))

  def pick(self, logits: jax.Array) -> jax.Array:
    """[..., B, L] -> [..., B]: each image's target."""
    targets = jnp.broadcast_to(self.targets, logits.shape[:-1])
    return jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]

  def gradient(self, images: jax.Array) -> jax.Array:
    """Of each image's score by its pixels, in the shape of ``images`` [..., B, H, W, C]."""
    return jax.grad(lambda images: jnp.sum(self.scores(images)))(images)

  def draw(self) -> jax.Array:
    """The key.

    Raises:
      ValueError: there is none.
    """
    if self.key is None:
      raise ValueError('this method draws at random and needs key=jax.random.key(...)')
    return self.key

  @functools.cached_property
  def network(self) -> Network:
    """The model opened at these images."""
    return open_network(self.model, self.variables, self.images)


def each(function: Callable[[jax.Array], jax.Array], count: int, *, at_once: int) -> jax.Array:
  """``function`` at 0..count-1, ``at_once`` numbers in one call: memory does not grow with count.

  Args:
    function: int32 [n] -> [n, ...].
    count: how many numbers.
    at_once: n.

  Returns:
    [count, ...].

  >>> each(lambda i: i * i, 5, at_once=2).tolist()
  [0, 1, 4, 9, 16]
  """
  numbers = _in_parts(count, at_once)
  out = jax.lax.map(function, numbers)
  return out.reshape(numbers.size, *out.shape[2:])[:count]


def total(function: Callable[[jax.Array], jax.Array], count: int, *, at_once: int) -> jax.Array:
  """The sum of ``function`` over 0..count-1, ``at_once`` numbers in one call.

  Args:
    function: int32 [n] -> [n, ...].
    count: how many numbers.
    at_once: n.

  >>> total(lambda i: i * i, 5, at_once=2).tolist()
  30
  """
  numbers = _in_parts(count, at_once)
  shape = jax.eval_shape(function, numbers[0])

  def step(sofar: jax.Array, numbers: jax.Array) -> tuple[jax.Array, None]:
    there = (numbers < count).reshape(-1, *[1] * (len(shape.shape) - 1))
    return sofar + jnp.sum(jnp.where(there, function(numbers), 0), axis=0), None

  return jax.lax.scan(step, jnp.zeros(shape.shape[1:], shape.dtype), numbers)[0]


def share(images_at_once: int, batch: int) -> int:
  """How many copies of a batch are about ``images_at_once`` images, at least one.

  Raises:
    ValueError: ``images_at_once`` is not positive.

  >>> share(128, 50), share(128, 200)
  (2, 1)
  """
  if images_at_once < 1:
    raise ValueError(f'{images_at_once=} must be positive')
  return max(1, images_at_once // batch)


def _in_parts(count: int, at_once: int) -> jax.Array:
  """0..count-1 and a few more, [parts, n]; the parts are as even as they can be."""
  parts = -(-count // at_once)
  size = -(-count // parts)
  return jnp.arange(parts * size, dtype=jnp.int32).reshape(parts, size)
