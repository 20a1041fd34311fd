"""Small networks away from where they start, and what the attention in them really does."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import create_attention
from jattn.backbones import ConvStack, vit_block
from jattn.explain.network import open_network
from jattn.models import Classifier, Head
from jattn.models.vit import vit
from jattn.ops import weigh
from jattn.pooling import create_pooling
from jattn.types import Prediction

CLASSES = 3


class Linear(nn.Module):
  """Logits that are linear in the pixels."""

  @nn.compact
  def __call__(self, images, *, train):
    kernel = self.param('kernel', nn.initializers.normal(1.0), (*images.shape[1:], CLASSES))
    return Prediction(jnp.einsum('bhwc,hwcl->bl', images, kernel))


def moved(model, images, *, seed=0, scale=0.3):
  """Variables away from where they start; statistics as they start."""
  variables = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
  rng = np.random.default_rng(seed)

  def move(path, leaf):
    if path[0].key != 'params':
      return jnp.full(leaf.shape, float(path[-1].key == 'var'), leaf.dtype)
    start = float(path[-1].key == 'scale')
    fan = max(1, np.prod(leaf.shape[:-1]))
    return jnp.asarray(start + 2 * scale * rng.normal(size=leaf.shape) / fan**0.5, leaf.dtype)

  return jax.tree_util.tree_map_with_path(move, variables)


def pictures(*shape, seed=1):
  return jnp.asarray(np.random.default_rng(seed).uniform(size=shape), jnp.float32)


@functools.cache
def convolutional(mechanism='self_attention', pool='log_sum_exp', size=(8, 12), **settings):
  """A stack of one stage, a mechanism, a pooling: model, variables, images [2, 8, 12, 3]."""
  attention = () if mechanism is None else (create_attention(mechanism, **settings),)
  model = Classifier(ConvStack((8,)), create_pooling(pool), Head(CLASSES), attention)
  images = pictures(2, *size, 3)
  return model, moved(model, images, seed=5, scale=0.6), images


@functools.cache
def transformer(depth=2, class_token=True, remat=False):
  """A transformer of 6 patches: model, variables, images [2, 8, 12, 3]."""
  model = vit(
    CLASSES,
    patch_size=4,
    width=8,
    depth=depth,
    num_heads=2,
    mlp_ratio=1,
    remat=remat,
    pool=None if class_token else 'weighted_average',
  )
  images = pictures(2, 8, 12, 3)
  return model, moved(model, images, scale=0.7), images


@functools.partial(jax.jit, static_argnums=0)
def predict(model, variables, images):
  return model.apply(variables, images, train=False)


@functools.partial(jax.jit, static_argnums=0)
def features_of(model, variables, images, targets):
  """(features, gradient), and what the pooling is given."""

  def pooled(model, images):
    features = model.backbone(images, train=False).features
    for mechanism in model.attention:
      features = mechanism(features, train=False).features
    return features

  found = open_network(model, variables, images).read_features(targets)
  return found, model.apply(variables, images, method=pooled)


def attention_gradients(model, variables, images, targets):
  """(weights, gradients) of a transformer's maps, without ``jattn.explain``.

  ``weigh`` is where a block multiplies values by attention: there something is added to it.
  """
  depth = model.backbone.depth

  @jax.jit
  def gradients(variables, images):
    maps = model.apply(variables, images, train=False).maps
    weights = [maps[f'backbone/stage_0/block_{i}/attention/weights'].weights for i in range(depth)]

    def score(additions):
      left = list(additions)
      with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vit_block, 'weigh', lambda a, v: weigh(a + left.pop(0), v))
        logits = model.apply(variables, images, train=False).logits
      return logits[jnp.arange(len(images)), targets].sum()

    return weights, jax.grad(score)([jnp.zeros_like(a) for a in weights])

  return gradients(variables, images)


def rank_correlation(a, b):
  """Spearman's of two arrays, ranks by counting."""
  ranks = [
    [(x < value).sum() + (x == value).sum() / 2 for value in x]
    for x in (np.ravel(a).astype(float), np.ravel(b).astype(float))
  ]
  return np.corrcoef(*ranks)[0, 1]
