"""Attention and how the logit would change with it, for each class its own picture."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jattn.explain.attention_maps import layers, names_of_maps, pooled_row
from jattn.explain.network import Look, Network
from jattn.explain.resizing import upsample
from jattn.explain.subject import Subject
from jattn.explain.tokens import Row, add, asked, first_row, own, pulled

# (weights, gradient) of each map, by its path.
Looked = dict[str, tuple[jax.Array, jax.Array]]


def gradient_attention(subject: Subject) -> jax.Array:
  """Attention times its gradient in the last layer: [B, h, w], >= 0.

  ``map_k = sum_q mean_h relu(dS/dA * A)[h, q, k]`` for a position map (queries that the score S
  does not depend on have no gradient, so of a class token's layer its row alone is left), and
  ``mean_h relu(dS/da * a)[h]`` for a pooling's map. The last layer of Barkan et al. 2021
  (Grad-SAM), arXiv 2204.11073, who take the mean over all.

  Raises:
    ValueError: the logits are computed from no map.
  """
  layer = _last(subject.network, 'gradient_attention')
  looked = _looked(subject, layer)
  if layer[0].kind == 'pool':
    return _relevance(looked[layer[0].path])
  return _pull(jnp.ones(layer[0].shape[:1] + layer[0].shape[-2:-1]), layer, looked).plane


def attention_grad_cam(subject: Subject) -> jax.Array:
  """Grad-CAM on the maps of the last layer, one channel a head: [B, h, w], >= 0.

  ``relu(mean_h w_h r_h)``, ``r_h = row A_h`` what head h sees from what is classified, ``w_h`` the
  gradient dS/dA_h summed over the queries and averaged over the keys of the grid. The baseline
  "GradCAM" of Chefer et al. 2021, arXiv 2012.09838, for a class token.

  Raises:
    ValueError: the logits are computed from no map.
  """
  network = subject.network
  layer = _last(network, 'attention_grad_cam')
  planes = []
  for look in layer:
    weights, gradient = _looked(subject, layer)[look.path]
    for head in range(weights.shape[1]):
      a, g = weights[:, head], gradient[:, head]
      if look.kind == 'position':
        row, _ = asked(first_row(network, look.grid, len(a)), look)
        a, g = pulled(row, a, look).plane, pulled(jnp.ones_like(row), g, look).plane
      planes.append(g.mean(axis=(1, 2), keepdims=True) * a)
  return jax.nn.relu(sum(planes) / len(planes))


def chefer(subject: Subject) -> jax.Array:
  """Relevance through all layers by the generic rule of Chefer et al.: [B, h, w], >= 0.

  ``R <- R + Abar_l R``, ``Abar_l = mean_h relu(dS/dA_l * A_l)``, from ``R = I`` at the first layer;
  the map is the row of ``R - I`` that is classified: the class token's, where I is no patch, or the
  mean of all, where I would be the same for every patch. Chefer et al. 2021, arXiv 2103.15679,
  rules 5 and 6. Where the pooling has a map a that the logits are computed from, its vector is a
  token that looks by a, and the row is ``mean_h relu(dS/da * a) R``. Other poolings' maps weigh the
  rows as in ``rollout``. Grids that change and maps side by side are taken as in ``rollout``; a map
  that is only shown (linear attention's) is left out.

  Raises:
    ValueError: the logits are computed from no map.
  """
  network = subject.network
  stack = layers(network, _usable(network))
  pool = _pool(network)
  if not stack and not pool:
    raise ValueError(_needs('chefer', network))
  looked = _looked(subject, [look for layer in stack for look in layer] + pool)
  # The row is identity + relevance.
  if pool:
    plane = _relevance(looked[pool[-1].path])
    relevance = Row(jnp.zeros((len(plane), 0)), plane)
    identity = relevance._replace(plane=jnp.zeros_like(plane))
  else:
    identity = pooled_row(network, stack[-1][0])
    relevance = Row(*map(jnp.zeros_like, identity))
  for layer in reversed(stack):
    queries, waiting = asked(identity, layer[0])
    more, more_waiting = asked(relevance, layer[0])
    pulled_here = _pull(queries + more, layer, looked)
    identity = add(waiting, own(queries, layer[0]))
    relevance = add(more_waiting, own(more, layer[0]), pulled_here)
  return relevance.plane


def legrad(subject: Subject) -> jax.Array:
  """How each layer's own score changes with its attention, mean over the layers: [B, H, W], >= 0.

  ``mean_l mean_{h,q} relu(dS_l/dA_l)[h, q, k]``: ``S_l`` is the score if what block l returns went
  straight to what follows the last block (norm, pooling, head). Bousselham et al. 2024,
  arXiv 2404.03214, without their scaling to 0..1. Blocks of another shape than the last have no
  such score and are left out, and so are maps that are only shown; a pooling's map counts as one
  more layer.

  Raises:
    ValueError: no map is left.
  """
  network = subject.network
  shapes = [network.program.shapes[number].shape for number in network.blocks]
  ends = [n for n, shape in zip(network.blocks, shapes, strict=True) if shape == shapes[-1]]
  pool = _pool(network)
  chosen = [
    look for look in _usable(network) if look.kind == 'position' and _block(network, look) in ends
  ]
  if not chosen and not pool:
    if any(look.kind == 'position' for look in _usable(network)):
      raise ValueError(
        'legrad needs the block that a map of positions is in; the backbone has no submodules named'
        ' stage_S or stage_S_block_I that return Attended with features of the shape of the last'
      )
    raise ValueError(_needs('legrad', network))
  gradients = _gradients_by_layer(subject, chosen + pool, ends)
  planes = []
  for layer in [*layers(network, chosen), *([look] for look in pool)]:
    parts = [jax.nn.relu(gradients[look.path]).mean(axis=1) for look in layer]
    if layer[0].kind == 'position':
      even = jnp.full(parts[0].shape[:2], 1 / parts[0].shape[1])
      parts = [pulled(even, g, look).plane for g, look in zip(parts, layer, strict=True)]
    planes.append(upsample(sum(parts) / len(parts), subject.images.shape[1:3]))
  return sum(planes) / len(planes)


def _gradients_by_layer(
  subject: Subject, looks: Sequence[Look], ends: Sequence[int]
) -> dict[str, jax.Array]:
  """The gradient by each map of the score of its own block, by path.

  The blocks' features go on without a gradient, and each goes to the end by itself with one.
  """
  network, program = subject.network, subject.network.program
  numbers = sorted({look.used for look in looks})

  def scores(moves: list[jax.Array]) -> tuple[jax.Array, list[jax.Array]]:
    made = {}

    def stop(number: int, value: jax.Array) -> jax.Array:
      made[number] = value
      return jax.lax.stop_gradient(value)

    edits = {n: functools.partial(jnp.add, move) for n, move in zip(numbers, moves, strict=True)}
    edits |= {n: functools.partial(stop, n) for n in ends}
    logits, *values = program.run(network.given, [network.logits, *numbers], edits=edits)
    found = [logits]
    for value in made.values():
      found += program.run({**network.given, ends[-1]: value}, [network.logits])
    return sum(jnp.sum(subject.pick(logits)) for logits in found), values

  shapes = [program.shapes[n] for n in numbers]
  zeros = [jnp.zeros(s.shape, s.dtype) for s in shapes]
  gradients, values = jax.grad(scores, has_aux=True)(zeros)
  found = dict(zip(numbers, zip(values, gradients, strict=True), strict=True))
  return {look.path: network.show(look, *found[look.used])[1] for look in looks}


def _usable(network: Network) -> list[Look]:
  return [
    look for look in network.looks if look.used is not None and look.kind in ('position', 'pool')
  ]


def _pool(network: Network) -> list[Look]:
  """The pooling's map, if the logits are computed from it."""
  return [look for look in _usable(network) if look.path.startswith('pool/')][-1:]


def _last(network: Network, method: str) -> list[Look]:
  """The last maps from which the logits are computed: a pooling's, or those of a layer."""
  usable = _usable(network)
  if not usable:
    raise ValueError(_needs(method, network))
  if usable[-1].kind == 'pool':
    return usable[-1:]
  return layers(network, usable)[-1]


def _needs(method: str, network: Network) -> str:
  there = names_of_maps(network)
  return f'{method} needs a map of positions that the logits are computed from; there is {there}'


def _block(network: Network, look: Look) -> int | None:
  """The block that a map is in: the first that is made after it."""
  return next((number for number in network.blocks if number > look.used), None)


def _looked(subject: Subject, looks: Sequence[Look]) -> Looked:
  both = subject.network.looked(looks, subject.targets)
  return {look.path: pair for look, pair in zip(looks, both, strict=True)}


def _relevance(looked: tuple[jax.Array, jax.Array]) -> jax.Array:
  """``mean_h relu(dS/dA * A)``."""
  weights, gradient = looked
  return jax.nn.relu(weights * gradient).mean(axis=1)


def _pull(queries: jax.Array, layer: Sequence[Look], looked: Looked) -> Row:
  """``queries Abar`` for the maps of one layer."""
  rows = [pulled(queries / len(layer), _relevance(looked[look.path]), look) for look in layer]
  return add(*rows)
