"""Network and optimizer of ``experiments.cifar_sprint``."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util
from optax.contrib import MuonDimensionNumbers, scale_by_muon

import jattn
from jattn.layers import BatchNorm, conv
from jattn.ops import convolve, max_pool
from jattn.types import Prediction

WHITENED = 24  # filters: 2x2 patches of 3 channels have 12 directions, each with both signs


class SprintNetwork(nn.Module):
  """Whitening, three stages of two convolutions, pooling, linear. After Jordan 2024.

  arXiv 2404.00498. Images [B, 32, 32, 3], standardised; the whitening kernel is no parameter.

  Attributes:
    widths: features of the stages.
    pool: 'max' as published, or a pooling of jattn by name, which says where it looked.
    num_classes: L.
    dtype: what is computed in.
  """

  widths: tuple[int, ...] = (64, 256, 256)
  pool: str = 'max'
  num_classes: int = 10
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, images: jax.Array, *, train: bool) -> Prediction:
    """[B, 32, 32, 3] -> logits [B, L] float32, and the maps of the pooling."""
    kernel = self.variable('whitening', 'kernel', jnp.zeros, (2, 2, 3, WHITENED)).value
    bias = self.param('whitening_bias', nn.initializers.zeros, (WHITENED,))
    x = convolve(
      images.astype(self.dtype),
      kernel.astype(self.dtype),
      (1, 1),
      'VALID',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    )
    x = nn.gelu(x + bias.astype(self.dtype).reshape(1, 1, 1, -1), approximate=False)
    for stage, features in enumerate(self.widths):
      for index in range(2):
        x = conv(
          features,
          (3, 3),
          inputs=x.shape[-1],
          name=f'conv_{stage}_{index}',
          use_bias=False,
          start=dirac,
          dtype=self.dtype,
        )(x)
        if index == 0:
          x = max_pool(x)
        x = BatchNorm(
          use_running_average=not train,
          momentum=0.6,
          epsilon=1e-12,
          use_scale=False,
          use_fast_variance=False,
          dtype=self.dtype,
          name=f'norm_{stage}_{index}',
        )(x)
        x = nn.gelu(x, approximate=False)
    maps = {}
    if self.pool == 'max':
      vector = x.max(axis=(1, 2))
    else:
      pooled = jattn.create_pooling(self.pool)(x, train=train)
      vector, maps = pooled.vector, {f'pool/{name}': m for name, m in pooled.maps.items()}
    head = self.param('head', unit_scale, (vector.shape[-1], self.num_classes))
    logits = vector.astype(jnp.float32) @ head / vector.shape[-1]
    return Prediction(logits, maps)


def dirac(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
  """The first filters pass their channel on, the rest are PyTorch's uniform ones. [kh, kw, C, D]"""
  height, width, channels, features = shape
  bound = (height * width * channels) ** -0.5
  kernel = jax.random.uniform(key, shape, dtype, -bound, bound)
  same = min(channels, features)
  kernel = kernel.at[..., :same].set(0)
  return kernel.at[height // 2, width // 2, jnp.arange(same), jnp.arange(same)].set(1)


def unit_scale(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
  """Uniform with a standard deviation of one over the matrix."""
  drawn = jax.random.uniform(key, shape, dtype, -1.0, 1.0)
  return drawn / jnp.std(drawn)


def whitening_kernel(images: jax.Array, epsilon: float = 5e-4) -> jax.Array:
  """[2, 2, 3, 24] float32: eigenvectors of the 2x2 patches over the root of their variance, +-.

  Args:
    images: [N, H, W, 3] standardised.
    epsilon: added to the variances.
  """
  images = images.astype(jnp.float32)
  height, width = images.shape[1:3]
  patches = jnp.stack(
    [images[:, i : height - 1 + i, j : width - 1 + j] for i in range(2) for j in range(2)], axis=3
  ).reshape(-1, 12)
  variances, vectors = jnp.linalg.eigh(patches.T @ patches / len(patches))
  filters = vectors[:, ::-1] / jnp.sqrt(variances[::-1] + epsilon).reshape(1, -1)
  return jnp.concatenate([filters, -filters], axis=1).reshape(2, 2, 3, WHITENED)


def make_optimizer(
  params: Mapping[str, Any], *, steps: int, whitening_steps: int, batch_size: int
) -> optax.GradientTransformation:
  """Muon for filters, SGD with Nesterov momentum for the rest; for a loss that is a sum.

  All rates fall linearly to zero at ``steps``, that of the whitening's bias at ``whitening_steps``.
  Before an update each filter bank is scaled to a norm of sqrt(D).
  """
  decay = 2e-6 * batch_size

  def falling(rate: float, over: int):
    return optax.linear_schedule(rate, 0.0, over)

  def sgd(rate: float, over: int) -> optax.GradientTransformation:
    return optax.chain(
      optax.add_decayed_weights(decay / rate),
      optax.trace(0.85, nesterov=True),
      optax.scale_by_learning_rate(falling(rate, over)),
    )

  return optax.multi_transform(
    {
      'filters': optax.chain(
        _stacked(
          scale_by_muon(ns_steps=3, beta=0.6, weight_dimension_numbers=_matrices),
        ),
        optax.scale_by_learning_rate(falling(0.24, steps)),
        _renormed(),
      ),
      'whitening': sgd(0.053, whitening_steps),
      'biases': sgd(0.053, steps),
      'head': sgd(0.67, steps),
    },
    _kinds(params),
  )


def _kinds(params: Mapping[str, Any]) -> Mapping[str, Any]:
  def kind(path: tuple[str, ...]) -> str:
    if path == ('head',):
      return 'head'
    if path == ('whitening_bias',):
      return 'whitening'
    return 'filters' if path[0].startswith('conv_') else 'biases'

  flat = traverse_util.flatten_dict(params)
  return traverse_util.unflatten_dict({path: kind(path) for path in flat})


def _matrices(stacks: Any) -> Any:
  """[filters, kh, kw, C, D]: the first axis is left, the last is the output's."""
  return jax.tree.map(lambda _: MuonDimensionNumbers((1, 2, 3), 4), stacks)


def _stacked(inner: optax.GradientTransformation) -> optax.GradientTransformation:
  """``inner`` over filters of one shape together, so that one chain of products serves them."""

  def stacks(tree: Any) -> dict[str, jax.Array]:
    by_shape: dict[str, list[jax.Array]] = {}
    for leaf in jax.tree.leaves(tree):
      by_shape.setdefault('x'.join(map(str, leaf.shape)), []).append(leaf)
    return {shape: jnp.stack(leaves) for shape, leaves in by_shape.items()}

  def update(updates, state, params=None):
    del params
    made, state = inner.update(stacks(updates), state)
    rows = {shape: iter(stack) for shape, stack in made.items()}
    leaves, structure = jax.tree.flatten(updates)
    found = [next(rows['x'.join(map(str, leaf.shape))]) for leaf in leaves]
    return jax.tree.unflatten(structure, found), state

  return optax.GradientTransformation(lambda params: inner.init(stacks(params)), update)


def _renormed() -> optax.GradientTransformation:
  """Adds what brings each filter bank to the norm sqrt(D) before the update is added."""

  def update(updates, state, params=None):
    def to(change, p):
      return change + p * (p.shape[-1] ** 0.5 / jnp.linalg.norm(p.ravel()) - 1)

    return jax.tree.map(to, updates, params), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
