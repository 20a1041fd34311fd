"""The gradient of the logit by the pixels, at the image, around it, and on the way to it."""

import jax
import jax.numpy as jnp
import numpy as np

from jattn.explain.subject import Subject, share, total


def saliency(subject: Subject) -> jax.Array:
  """``max_c |dS/dx_c|``: [B, H, W], >= 0.

  Simonyan et al. 2013, arXiv 1312.6034.
  """
  return jnp.abs(subject.gradient(subject.images)).max(axis=-1)


def input_x_gradient(subject: Subject) -> jax.Array:
  """``sum_c x_c dS/dx_c``, signed: [B, H, W].

  Shrikumar et al. 2016, arXiv 1605.01713. Sums to S where S is linear without bias.
  """
  return jnp.sum(subject.images * subject.gradient(subject.images), axis=-1)


def integrated_gradients(
  subject: Subject,
  *,
  baseline: jax.Array | float = 0.0,
  nodes: int = 64,
  images_at_once: int = 128,
) -> jax.Array:
  """``sum_c (x - x0)_c integral_0^1 dS(x0 + t (x - x0))/dx_c dt``, signed: [B, H, W].

  Sundararajan et al. 2017, arXiv 1703.01365. Sums to ``S(x) - S(x0)``, up to the error of the
  integral, which is Gauss-Legendre quadrature: exact for polynomials of degree below 2 ``nodes``.

  Args:
    subject: what is explained.
    baseline: x0, a number or what broadcasts to [B, H, W, C]; the default is a black image where
      pixels are in 0..1.
    nodes: where on the way the gradient is taken.
    images_at_once: about how many images are looked at in one call.

  Raises:
    ValueError: ``nodes`` or ``images_at_once`` is not positive.
  """
  if nodes < 1:
    raise ValueError(f'{nodes=} must be positive')
  places, weights = np.polynomial.legendre.leggauss(nodes)
  places, weights = (
    jnp.asarray((places + 1) / 2, jnp.float32),
    jnp.asarray(weights / 2, jnp.float32),
  )
  images = subject.images
  start = jnp.broadcast_to(jnp.asarray(baseline, images.dtype), images.shape)

  def gradients(numbers: jax.Array) -> jax.Array:
    t = places[numbers].reshape(-1, 1, 1, 1, 1).astype(images.dtype)
    g = subject.gradient(start[None] + t * (images - start)[None])
    return weights[numbers].reshape(-1, 1, 1, 1, 1) * g

  at_once = share(images_at_once, len(images))
  return jnp.sum((images - start) * total(gradients, nodes, at_once=at_once), axis=-1)


def smooth_grad(
  subject: Subject, *, noise: float = 0.15, samples: int = 25, images_at_once: int = 128
) -> jax.Array:
  """``max_c |mean_n dS(x + sigma e_n)/dx_c|``, ``e_n`` standard normal: [B, H, W], >= 0.

  Smilkov et al. 2017, arXiv 1706.03825. Needs a key; all images of a batch get the same noise, so
  that an image's map does not depend on its neighbours.

  Args:
    subject: what is explained.
    noise: sigma over the image's range (largest less smallest value).
    samples: how many gradients are averaged.
    images_at_once: about how many images are looked at in one call.

  Raises:
    ValueError: there is no key, or ``samples`` or ``images_at_once`` is not positive.
  """
  if samples < 1:
    raise ValueError(f'{samples=} must be positive')
  key, images = subject.draw(), subject.images
  axes = (1, 2, 3)
  sigma = noise * (images.max(axes, keepdims=True) - images.min(axes, keepdims=True))

  def gradients(numbers: jax.Array) -> jax.Array:
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, numbers)
    drawn = jax.vmap(lambda key: jax.random.normal(key, images.shape[1:], images.dtype))(keys)
    return subject.gradient(images[None] + sigma[None] * drawn[:, None])

  summed = total(gradients, samples, at_once=share(images_at_once, len(images)))
  return jnp.abs(summed / samples).max(axis=-1)
