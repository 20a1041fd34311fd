"""The nouns: what mechanisms, poolings, models and loaders hand to each other.

Letters, here and everywhere: ``B`` batch, ``H`` height, ``W`` width, ``C`` channels, ``N = H*W``
positions, ``M`` maps (attention heads), ``Q`` queries, ``K`` keys, ``D`` head width, ``L`` labels.
Images are NHWC. ``H`` is never heads.
"""

import functools
import re
from collections.abc import Mapping
from typing import Literal, get_args

import flax.struct
import jax
import jax.numpy as jnp

MapKind = Literal['position', 'pool', 'gate', 'branch', 'channel']
MAP_KINDS: tuple[str, ...] = get_args(MapKind)


@flax.struct.dataclass
class AttentionMap:
  """Where a mechanism looked. ``kind`` says what the numbers mean, and each kind has its law.

  ========  ================================  ==========================================
  kind      weights (float32)                 law
  ========  ================================  ==========================================
  position  [B, M, Q, K]                      >= 0, every row over K sums to one
  pool      [B, M, H, W]                      >= 0, sums to one over H, W
  gate      broadcasts against [B, H, W, C]   >= 0; a pure gate returns features * gate
  branch    [B, P, C]                         >= 0, sums to one over the P branches
  channel   [B, M, D, D], M heads, D = C / M  >= 0, every row sums to one
  ========  ================================  ==========================================

  A row or map whose positions are all masked is zero instead of summing to one.

  A local mechanism (window, halo, axial, criss-cross) looks at few positions, so its map is kept
  as small as its formula: ``weights[b, m, q, j]`` is the weight on position ``keys[q, j]``, and
  ``dense()`` spreads it over all N.

  Attributes:
    weights: the numbers, always float32 (float64 for float64 features).
    kind: one of the five kinds above (static).
    grid: ``(H, W)`` of the positions that the weights speak of (static).
    keys: int32 [Q, K], for kind ``position`` only: which position (row-major, 0..H*W-1) each key
      is; -1 is none of them: padding, or a key of value zero. None where key j is position j.
  """

  weights: jax.Array
  kind: MapKind = flax.struct.field(pytree_node=False)
  grid: tuple[int, int] = flax.struct.field(pytree_node=False)
  keys: jax.Array | None = None

  def dense(self) -> jax.Array:
    """Returns a position map over all positions, [B, M, Q, H*W]; other kinds as they are.

    Weight on padding outside the grid is left out, so a row that looks outside sums to less than
    one.
    """
    if self.keys is None:
      return self.weights
    return _spread(self.weights, self.keys, self.grid[0] * self.grid[1])


@functools.partial(jax.jit, static_argnums=2)  # one program, not six, where it is called by hand
def _spread(weights: jax.Array, keys: jax.Array, positions: int) -> jax.Array:
  batch, maps, queries, _ = weights.shape
  spread = jnp.zeros((batch, maps, queries, positions + 1), weights.dtype)
  columns = jnp.where(keys < 0, positions, keys)
  spread = spread.at[:, :, jnp.arange(queries)[:, None], columns].add(weights)
  return spread[..., :-1]


@flax.struct.dataclass
class Attended:
  """What a mechanism or a backbone returns: ``features`` [B, H', W', C'] and maps by name.

  Attributes:
    features: the feature map.
    maps: where it looked.
    stages: of a backbone, the feature map after each stage, finest first; otherwise ().
    vector: [B, C'], a summary that a backbone made by itself (a class token), or None.
  """

  features: jax.Array
  maps: Mapping[str, AttentionMap] = flax.struct.field(default_factory=dict)
  stages: tuple[jax.Array, ...] = ()
  vector: jax.Array | None = None


@flax.struct.dataclass
class Pooled:
  """What a pooling returns: ``vector`` [B, C'] and its maps by name."""

  vector: jax.Array
  maps: Mapping[str, AttentionMap] = flax.struct.field(default_factory=dict)


@flax.struct.dataclass
class Prediction:
  """What a model returns: ``logits`` [B, L] float32 and every map under a slash path.

  Paths read as the model is built: ``"attention_0/weights"``, ``"pool/weights"``. What JAX returns
  from a transformation has its keys by the alphabet; ``in_order`` puts them as the layers stand.
  """

  logits: jax.Array
  maps: Mapping[str, AttentionMap] = flax.struct.field(default_factory=dict)


_PARTS = ('backbone', 'attention', 'pool')


def in_order(maps: Mapping[str, AttentionMap]) -> dict[str, AttentionMap]:
  """The same maps as their layers stand in a model: block 2 before block 10, the pooling last.

  >>> paths = ['attention_0/w', 'backbone/block_10/w', 'backbone/block_2/w', 'pool/w']
  >>> list(in_order(dict.fromkeys(paths)))
  ['backbone/block_2/w', 'backbone/block_10/w', 'attention_0/w', 'pool/w']
  """

  def place(path: str) -> tuple[int, list[str | int]]:
    part = path.split('/')[0].partition('_')[0]
    rank = _PARTS.index(part) if part in _PARTS else len(_PARTS)
    # Digits and the rest take turns, so numbers are compared with numbers only.
    return rank, [int(s) if s.isdigit() else s for s in re.split(r'(\d+)', path)]

  return {path: maps[path] for path in sorted(maps, key=place)}


@flax.struct.dataclass
class Batch:
  """What a loader yields and a step takes.

  Attributes:
    images: [B, H, W, 3], uint8 in 0..255 as loaded (a quarter of the bytes to move to a device) or
      float32 in [0, 1]; the step makes them float32.
    labels: [B] int32 in 0..L-1; 0 where the row is padding.
    mask: [B] bool, False where the row is padding.
  """

  images: jax.Array
  labels: jax.Array
  mask: jax.Array
