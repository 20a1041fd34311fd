"""The network's own maps, head by head and layer by layer."""

import functools
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from jattn.explain.attention_maps import speaks_of_places
from jattn.explain.network import Look, Network, open_network
from jattn.explain.tokens import asked, first_row, pulled
from jattn.ops.reshape import on_any_mesh


@on_any_mesh('images')
@functools.partial(jax.jit, static_argnums=0)
def attention_by_head(
  model: nn.Module, variables: Mapping, images: jax.Array
) -> dict[str, jax.Array]:
  """Every map of the model that speaks of places, each head by itself.

  What the method ``'attention'`` shows without the mean over the maps: ``position`` the attention
  received (by the class token's row where there is one, by the mean over the queries
  elsewhere), ``pool`` the weights, ``gate`` the mean over the channels as one head.

  Args:
    model: a ``Classifier``.
    variables: its variables.
    images: [B, H, W, C] floating.

  Returns:
    {path in ``Prediction.maps``: [B, M, h, w] float32 >= 0}; empty where no map speaks of places.

  Raises:
    ValueError: the model is no ``Classifier``.
  """
  network = open_network(model, variables, images)
  looks = [look for look in network.looks if speaks_of_places(look)]
  return {look.path: _by_head(network, look).astype(jnp.float32) for look in looks}


def _by_head(network: Network, look: Look) -> jax.Array:
  (weights,) = network.read([look.shown])
  if look.kind == 'pool':
    return weights
  if look.kind == 'gate':
    return jnp.broadcast_to(weights.mean(axis=-1)[:, None], (len(weights), 1, *look.grid))
  queries, _ = asked(first_row(network, look.grid, len(weights)), look)
  return jax.vmap(lambda head: pulled(queries, head, look).plane, in_axes=1, out_axes=1)(weights)
