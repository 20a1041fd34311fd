"""Where the network says it looked: its own maps, and their product through the layers."""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp

from jattn.explain.network import Look, Network
from jattn.explain.subject import Subject
from jattn.explain.tokens import Row, add, asked, first_row, kept, own, pulled


def attention(subject: Subject, *, path: str | None = None) -> jax.Array:
  """The network's own map, the last one that speaks of places: [B, h, w], >= 0.

  ========  ============================================================================
  kind      what is shown
  ========  ============================================================================
  pool      mean over the maps M
  position  attention received: mean over the maps and over what is classified, which is
            the class token's row where there is one and the mean over the queries elsewhere
  gate      mean over the channels, and over the gates of the mechanism that differ by place
  ========  ============================================================================

  It does not depend on the target.

  Args:
    subject: what is explained.
    path: the map to show, as ``Prediction.maps`` calls it; None is the last.

  Raises:
    ValueError: no map has this path, or none speaks of places.
  """
  network = subject.network
  spatial = [look for look in network.looks if speaks_of_places(look)]
  if path is not None:
    chosen = [look for look in spatial if look.path == path]
    if not chosen:
      raise ValueError(f'{path=} is no map of places here; there are {[s.path for s in spatial]}')
  else:
    if not spatial:
      raise ValueError(f'no map of this model speaks of places: {names_of_maps(network)}')
    last = spatial[-1]
    chosen = [look for look in spatial if look.mechanism == last.mechanism]
    chosen = [look for look in chosen if look.kind == last.kind]
  return sum(_received(network, look) for look in chosen) / len(chosen)


def rollout(subject: Subject, *, residual: float = 0.5) -> jax.Array:
  """Attention rollout: the product of all position maps, each mixed with the identity, [B, h, w].

  ``R = Â_L ... Â_1``, ``Â_l = (1 - a) A_l + a I`` by rows, ``A_l`` the mean over the heads; the map
  is the row of ``R`` that is classified: the class token's, the weighted average of the rows by the
  pooling's map, or their mean. Abnar & Zuidema 2020, arXiv 2005.00928, with a = 1/2. A row that has
  weight outside the grid is divided by what is left, so rows of ``R`` sum to one; a row of zeros is
  the identity. Where the grid changes from layer to layer each cell is spread evenly over the area
  it covers. Maps of one mechanism that do not follow one another count as its heads.

  In 0..1 with sum one, without the part of the class token. It does not depend on the target.

  Args:
    subject: what is explained.
    residual: a, in 0..1; 0 for attention without a residual connection.

  Raises:
    ValueError: there is no position map, or ``residual`` is outside 0..1.
  """
  if not 0 <= residual <= 1:
    raise ValueError(f'{residual=} must be in 0..1')
  network = subject.network
  stack = layers(network, network.looks)
  if not stack:
    raise ValueError(f'rollout needs position maps; there is {names_of_maps(network)}')
  weights = _means(network, [look for layer in stack for look in layer])
  row = pooled_row(network, stack[-1][0])
  for layer in reversed(stack):
    row = roll(row, layer, [weights[look.path] for look in layer], residual=residual)
  return row.plane


def roll(
  row: Row, layer: Sequence[Look], weights: Sequence[jax.Array], *, residual: float = 0.5
) -> Row:
  """``row Â`` for the maps of one layer, each [B, Q, K]; see ``rollout``."""
  queries, waiting = asked(row, layer[0])
  total = sum(kept(a, look) for a, look in zip(weights, layer, strict=True)) / len(layer)
  total = (1 - residual) * total + residual
  # Without a residual a row of zeros has nothing to go on with but itself.
  lost = total <= 0
  queries = queries / jnp.where(lost, 1, total)
  looked = [
    pulled((1 - residual) / len(layer) * queries, a, look)
    for a, look in zip(weights, layer, strict=True)
  ]
  return add(waiting, own(jnp.where(lost, 1, residual) * queries, layer[0]), *looked)


def layers(network: Network, looks: Sequence[Look]) -> list[list[Look]]:
  """The position maps among ``looks`` in order; maps looked at side by side are one layer."""
  stack: list[list[Look]] = []
  for look in looks:
    if look.kind != 'position':
      continue
    if stack and _beside(network, stack[-1], look):
      stack[-1].append(look)
    else:
      stack.append([look])
  return stack


def pooled_row(network: Network, look: Look) -> Row:
  """What is classified, as a row over the queries of the last layer.

  The class token, or the pooling's map where it has one, or the mean over the grid.
  """
  pool = [look for look in network.looks if look.path.startswith('pool/') and look.kind == 'pool']
  row = first_row(network, look.grid, look.shape[0])
  if not pool or network.class_token:
    return row
  plane = network.read([pool[-1].shown])[0].mean(axis=1)
  total = plane.sum(axis=(1, 2), keepdims=True)
  return row._replace(plane=plane / jnp.where(total > 0, total, 1))


def speaks_of_places(look: Look) -> bool:
  """Whether a map tells positions apart."""
  if look.kind == 'gate':
    return look.shape[1] > 1 or look.shape[2] > 1
  return look.kind in ('position', 'pool')


def _received(network: Network, look: Look) -> jax.Array:
  (weights,) = network.read([look.shown])
  if look.kind == 'pool':
    return weights.mean(axis=1)
  if look.kind == 'gate':
    return jnp.broadcast_to(weights.mean(axis=-1), (len(weights), *look.grid))
  queries, _ = asked(first_row(network, look.grid, len(weights)), look)
  return pulled(queries, weights.mean(axis=1), look).plane


def _means(network: Network, looks: Sequence[Look]) -> dict[str, jax.Array]:
  """The mean over the heads of each map, by its path."""
  values = network.read([look.shown for look in looks])
  return {look.path: a.mean(axis=1) for look, a in zip(looks, values, strict=True)}


def _beside(network: Network, layer: Sequence[Look], look: Look) -> bool:
  """Whether ``look`` belongs to the mechanism of ``layer`` and does not follow from its maps."""
  if look.mechanism != layer[0].mechanism or look.shape[-2] != layer[0].shape[-2]:
    return False
  before = [other.used for other in layer if other.used is not None]
  return look.used is None or look.used not in network.program.reached_from(before)


def names_of_maps(network: Network) -> str:
  """The maps there are, for a message: the last three with their kinds."""
  names = [f'{look.path} ({look.kind})' for look in network.looks]
  return ', '.join(['...'] * (len(names) > 3) + names[-3:]) or 'no map at all'


def all_received(subject: Subject) -> Iterator[tuple[str, jax.Array]]:
  """(path, [B, h, w]) of every map that speaks of places, as ``attention`` shows it."""
  for look in subject.network.looks:
    if speaks_of_places(look):
      yield look.path, _received(subject.network, look)
