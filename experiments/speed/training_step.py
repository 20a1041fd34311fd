"""A training step on fixed images: the loss, all gradients and AdamW, dropout on."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jattn
from jattn.cost import cost


class TrainingStep:
  """Starts one step after the other, each from the last one's state; it does not wait.

  No augmentation and no loading; decay 0.05 on matrices, as ``torch_twin.make_optimizer``.

  Args:
    name: of a model.
    images: [B, H, W, 3] float32.
    labels: [B] int32.
    half: computes in bfloat16, with float32 parameters.
    attach: (mechanism, where) put into the network by ``jattn.models.attach_attention``.
    **settings: of the model.
  """

  def __init__(
    self,
    name: str,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    half: bool = False,
    attach: tuple[str, str] | None = None,
    **settings: Any,
  ):
    self.model, variables = start(name, images, half, attach=attach, **settings)
    self.parameters = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
    rest, params = dict(variables), variables['params']
    del rest['params']
    model, x, y = self.model, jnp.asarray(images), jnp.asarray(labels)
    rule = optax.adamw(
      1e-3, weight_decay=0.05, mask=lambda p: jax.tree.map(lambda x: x.ndim > 1, p)
    )

    def step(params, rest, moments, key, x, y):
      key, dropout = jax.random.split(key)

      def loss(params):
        prediction, updated = model.apply(
          {'params': params, **rest}, x, train=True, mutable=list(rest), rngs={'dropout': dropout}
        )
        logits = prediction.logits.astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), updated

      (value, updated), gradients = jax.value_and_grad(loss, has_aux=True)(params)
      changes, moments = rule.update(gradients, moments, params)
      return optax.apply_updates(params, changes), updated, moments, key, value

    self.step = jax.jit(step, donate_argnums=(0, 1, 2))
    self.state = [params, rest, rule.init(params), jax.random.key(0)]
    self.batch = x, y

  def __call__(self) -> jax.Array:
    """The loss before the step, which may still be computed."""
    *self.state[:], value = self.step(*self.state, *self.batch)
    return value

  def cost(self) -> dict[str, Any]:
    """Multiply-accumulates by our own counter, and planned bytes of intermediate arrays."""
    given = jax.tree.map(
      lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), (*self.state, *self.batch)
    )
    found = cost(self.step, *given)
    return {
      'multiply_accumulates': found.multiply_accumulates,
      'temporary_bytes': found.temporary_bytes,
    }


def start(
  name: str,
  images: np.ndarray,
  half: bool,
  *,
  attach: tuple[str, str] | None = None,
  **settings: Any,
) -> tuple[Any, Any]:
  """A model for ten classes and its variables."""
  model = jattn.create_model(name, num_classes=10, dtype=jnp.bfloat16 if half else None, **settings)
  init = jax.jit(functools.partial(model.init, train=False))
  key, x = jax.random.key(0), jnp.asarray(images[:1])
  if attach is None:
    return model, init(key, x)
  mechanism, where = attach
  variables = jax.tree.map(
    lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(init, key, x)
  )
  model, _ = jattn.attach_attention(model, variables, mechanism, where, image_size=x.shape[1])
  return model, jax.jit(functools.partial(model.init, train=False))(key, x)


def draw(batch: int, size: int = 32) -> tuple[np.ndarray, np.ndarray]:
  """Images [B, size, size, 3] float32 and labels [B] int32."""
  rng = np.random.default_rng(0)
  images = rng.normal(size=(batch, size, size, 3)).astype(np.float32)
  return images, rng.integers(0, 10, batch).astype(np.int32)
