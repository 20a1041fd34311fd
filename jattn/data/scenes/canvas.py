"""What lies on a canvas, and any crop of it in bytes.

All arithmetic is on whole numbers, so every device gives the same bytes.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp

INK = 25  # a pixel brighter than this, 0.1 of full, is ink; less is the soft edge of a stroke

Role = Literal['object', 'distractor', 'marker']
_OWNERS: Mapping[Role, int] = {'object': 1, 'distractor': 2}


@flax.struct.dataclass
class Layer:
  """n square pieces of one kind on each of B canvases, laid down in order.

  Attributes:
    rows: [B, n] int32, which picture of the table.
    offsets: [B, n, 2] int32, row and column of the piece's corner in its picture.
    corners: [B, n, 2] int32, row and column of the piece's corner on the canvas.
    table: the name of the table of pictures (static).
    side: rows and columns of a piece in pixels (static).
    role: 'object' if the label is read off it, 'distractor' if it is there to mislead, 'marker' if
      it is neither (static).
    covers: whether a piece replaces what lies below, its black pixels too; otherwise it is added
      and clipped at 255 (static).
  """

  rows: jax.Array
  offsets: jax.Array
  corners: jax.Array
  table: str = flax.struct.field(pytree_node=False)
  side: int = flax.struct.field(pytree_node=False)
  role: Role = flax.struct.field(pytree_node=False)
  covers: bool = flax.struct.field(pytree_node=False)


@flax.struct.dataclass
class Scene:
  """B scenes as a few numbers each: `label` [B] int32 and the layers, lowest first.

  Attributes:
    label: in 0..L-1.
    layers: what lies on the canvas.
    size: S, the side of the canvas in pixels (static).
  """

  label: jax.Array
  layers: tuple[Layer, ...]
  size: int = flax.struct.field(pytree_node=False)

  def boxes(self, role: Role) -> jax.Array:
    """[B, K, 4] int32: top, left, bottom, right of the pieces; the last two lie outside."""
    corners = [jnp.zeros((*self.label.shape, 0, 4), jnp.int32)]
    for layer in self.layers:
      if layer.role == role:
        corners.append(jnp.concatenate([layer.corners, layer.corners + layer.side], axis=-1))
    return jnp.concatenate(corners, axis=-2)


Tables = Mapping[str, jax.Array]
Paste = Callable[[Layer, jax.Array, jax.Array], jax.Array]


def paint(
  scene: Scene, tables: Tables, corner: jax.Array, size: tuple[int, int], paste: Paste
) -> jax.Array:
  """A crop [B, h, w] uint8, black outside the canvas.

  It costs what lies in the crop, not what lies on the canvas: the pieces that touch the crop are
  sorted to the front, and the loop ends after the greatest number of them in the batch.

  Args:
    scene: B scenes.
    tables: pictures [n, side, side] uint8 by the name that layers call them by.
    corner: [B, 2] int32, row and column of the crop's corner on the canvas; it may lie outside.
    size: rows h and columns w of the crop (static).
    paste: (layer, below [s, s], piece [s, s]) -> what is there afterwards [s, s].
  """
  # A piece that sticks out, or is elsewhere, lands in a margin that is cut off.
  margin = max((layer.side for layer in scene.layers), default=0)
  canvas = jnp.zeros((corner.shape[0], size[0] + 2 * margin, size[1] + 2 * margin), jnp.uint8)
  for layer in scene.layers:
    canvas = _lay(canvas, layer, tables[layer.table], corner, size, margin, paste)
  return canvas[:, margin : margin + size[0], margin : margin + size[1]]


def _lay(canvas, layer, table, corner, size, margin, paste):
  extent = jnp.array(size, jnp.int32)[None, None]
  starts = layer.corners - corner[:, None]
  touches = ((starts > -layer.side) & (starts < extent)).all(axis=-1)
  starts = jnp.clip(starts + margin, 0, extent + margin)

  def one(canvas, row, offset, start):
    square = (layer.side, layer.side)
    piece = jax.lax.dynamic_slice(table, (row, *offset), (1, *square))[0]
    below = jax.lax.dynamic_slice(canvas, start, square)
    return jax.lax.dynamic_update_slice(canvas, paste(layer, below, piece), start)

  if layer.rows.shape[1] == 1:
    return jax.vmap(one)(canvas, layer.rows[:, 0], layer.offsets[:, 0], starts[:, 0])
  order = jnp.argsort(~touches, axis=1, stable=True)
  images = jnp.arange(canvas.shape[0])

  def step(number, canvas):
    piece = order[:, number]
    # An image that has fewer pieces here lays one that is elsewhere: into the margin.
    return jax.vmap(one)(
      canvas, layer.rows[images, piece], layer.offsets[images, piece], starts[images, piece]
    )

  return jax.lax.fori_loop(0, touches.sum(axis=1).max(initial=0), step, canvas)


def brightness(layer: Layer, below: jax.Array, piece: jax.Array) -> jax.Array:
  """Pastes pixels 0..255."""
  return piece if layer.covers else below + jnp.minimum(piece, 255 - below)


def ownership(layer: Layer, below: jax.Array, piece: jax.Array) -> jax.Array:
  """Pastes whose ink shows: 1 an object's, 2 a distractor's, 0 nobody's.

  Where the ink of two is added it belongs to the one laid down last, which is the object.
  """
  if layer.role == 'marker':
    return below
  mine = jnp.where(piece > INK, jnp.uint8(_OWNERS[layer.role]), jnp.uint8(0))
  return mine if layer.covers else jnp.where(mine > 0, mine, below)
