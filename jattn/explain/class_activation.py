"""Features and the gradient of the logit by them: Grad-CAM and its relatives.

``F`` [B, h, w, C] are the last features on a grid: what the pooling sees, or, where a class token
is classified, the normed patches that the attention of the last block sees, since behind it the
patches no longer reach the logits. ``G = dS/dF``, S the logit of the target.
"""

import jax
import jax.numpy as jnp

from jattn.explain.subject import Subject


def grad_cam(subject: Subject) -> jax.Array:
  """``relu(sum_c w_c F_c)``, ``w_c = mean_xy G_c``: [B, h, w], >= 0.

  Selvaraju et al. 2016, arXiv 1610.02391.
  """
  features, gradient = _features(subject)
  weights = gradient.mean(axis=(1, 2), keepdims=True)
  return jax.nn.relu(jnp.sum(weights * features, axis=-1))


def grad_cam_plus_plus(subject: Subject) -> jax.Array:
  """``relu(sum_c w_c F_c)``, ``w_c = sum_xy a relu(G_c)``: [B, h, w], >= 0.

  ``a = G^2 / (2 G^2 + G^3 sum_xy F_c)``, zero where the denominator is. Chattopadhay et al. 2017,
  arXiv 1710.11063, equation 19 with ``exp(S)`` as the score, whose derivatives are powers of G; the
  factor exp(S) that all weights of an image share is left out.
  """
  features, gradient = _features(subject)
  square, cube = gradient**2, gradient**3
  below = 2 * square + cube * features.sum(axis=(1, 2), keepdims=True)
  share = square / jnp.where(below == 0, 1, below)
  weights = jnp.sum(share * jax.nn.relu(gradient), axis=(1, 2), keepdims=True)
  return jax.nn.relu(jnp.sum(weights * features, axis=-1))


def hires_cam(subject: Subject) -> jax.Array:
  """``sum_c G_c F_c``, signed: [B, h, w].

  Draelos & Carin 2020, arXiv 2011.08891. Where one linear layer takes the features (or their
  average) to the logits the map sums exactly to the logit less its bias.
  """
  features, gradient = _features(subject)
  return jnp.sum(gradient * features, axis=-1)


def layer_cam(subject: Subject) -> jax.Array:
  """``relu(sum_c relu(G_c) F_c)``: [B, h, w], >= 0.

  Jiang et al. 2021 (LayerCAM), IEEE Transactions on Image Processing 30.
  """
  features, gradient = _features(subject)
  return jax.nn.relu(jnp.sum(jax.nn.relu(gradient) * features, axis=-1))


def _features(subject: Subject) -> tuple[jax.Array, jax.Array]:
  features, gradient = subject.network.read_features(subject.targets)
  return features.astype(jnp.float32), gradient.astype(jnp.float32)
