"""All scenes of one split: numbers to scenes, scenes to pixels, and where the answer lies."""

import threading
from collections.abc import Mapping

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jattn.data.scenes.canvas import Scene, brightness, ownership, paint
from jattn.data.scenes.recipes import Recipe
from jattn.data.scenes.sprites import Sprites

_BLOCK_BYTES, _BLOCK = 16 << 20, 256
# The loader reads with threads, and each would compile for itself.
_one_compiles = threading.Lock()


@flax.struct.dataclass
class Truth:
  """Where the answer of each of B scenes lies, and what is there to mislead.

  A pixel of both, where clutter lies under a digit, counts as the object's: no pixel is in two
  masks. What is erased is in none.

  Attributes:
    masks: [B, h, w] bool, ink of the objects that the label is read off, brighter than 25 of 255.
    boxes: [B, K, 4] int32, their boxes: top, left, bottom, right, the last two outside.
    distractor_masks: [B, h, w] bool, likewise of what is there to mislead.
    distractor_boxes: [B, D, 4] int32.
  """

  masks: jax.Array | np.ndarray
  boxes: jax.Array | np.ndarray
  distractor_masks: jax.Array | np.ndarray
  distractor_boxes: jax.Array | np.ndarray

  @property
  def chance_of_masks(self) -> jax.Array | np.ndarray:
    """[B] in [0, 1]: what a random map puts on the masks, in mass and in the pointing game."""
    return self.masks.mean(axis=(1, 2))

  @property
  def chance_of_boxes(self) -> jax.Array | np.ndarray:
    """[B] in [0, 1], as `chance_of_masks` of the boxes, which never overlap."""
    height, width = self.masks.shape[1:]
    sides = self.boxes[..., 2:] - self.boxes[..., :2]
    return (sides[..., 0] * sides[..., 1]).sum(axis=-1) / (height * width)


@flax.struct.dataclass
class Scenes:
  """The scenes of a split: a pytree, so that it goes into `jit` as an argument.

  Scene number i is a pure function of (recipe, key, i): not of the batch, the order or the device.
  `draw` makes a few whole numbers of it, `render` any crop of its pixels, so a canvas of 10,000 x
  10,000 costs nothing until it is looked at.

    @jax.jit
    def look(scenes, indices, corner):
      scene = scenes.draw(indices)
      return scenes.render(scene, corner, 50), scene.label

  Attributes:
    key: the random key of the seed and the split.
    test: [] bool, whether this is the test split.
    sprites: the digits of this split alone.
    patterns: the other pictures by name, [n, side, side] uint8.
    recipe: what the scenes show (static).
  """

  key: jax.Array
  test: jax.Array
  sprites: Sprites
  patterns: Mapping[str, jax.Array]
  recipe: Recipe = flax.struct.field(pytree_node=False)

  def draw(self, indices: jax.Array) -> Scene:
    """Scenes by number: [B] integers >= 0 to B scenes."""

    def one(index):
      key = jax.random.fold_in(self.key, index)
      return self.recipe.draw(key, self.sprites, test=self.test)

    return jax.vmap(one)(jnp.asarray(indices))

  def render(
    self,
    scene: Scene,
    corner: jax.Array | tuple[int, int] = (0, 0),
    size: int | tuple[int, int] | None = None,
  ) -> jax.Array:
    """A crop of each canvas: [B, h, w, 3] uint8, grey, black outside the canvas.

    The pixels of a crop are those of the whole canvas there, exactly.

    Args:
      scene: B scenes, as `draw` gives them.
      corner: row and column of the crop's corner, [B, 2] or [2] int32; may lie outside the canvas.
      size: h and w, or one number for both (static); None: as the canvas.
    """
    return jnp.repeat(self._paint(scene, corner, size, brightness)[..., None], 3, axis=-1)

  def masks(
    self,
    scene: Scene,
    corner: jax.Array | tuple[int, int] = (0, 0),
    size: int | tuple[int, int] | None = None,
  ) -> tuple[jax.Array, jax.Array]:
    """Whose ink is where in a crop: objects and distractors, each [B, h, w] bool, as in `Truth`."""
    owners = self._paint(scene, corner, size, ownership)
    return owners == 1, owners == 2

  def truth(self, scene: Scene) -> Truth:
    """Masks of the whole canvases and boxes."""
    objects, distractors = self.masks(scene)
    return Truth(
      masks=objects,
      boxes=scene.boxes('object'),
      distractor_masks=distractors,
      distractor_boxes=scene.boxes('distractor'),
    )

  def _paint(self, scene, corner, size, paste):
    size = scene.size if size is None else size
    size = (size, size) if np.ndim(size) == 0 else tuple(size)
    corner = jnp.broadcast_to(jnp.asarray(corner, jnp.int32), (*scene.label.shape, 2))
    return paint(scene, {'sprites': self.sprites.images, **self.patterns}, corner, size, paste)


@jax.jit
def _images(scenes: Scenes, indices: jax.Array) -> tuple[jax.Array, jax.Array]:
  scene = scenes.draw(indices)
  return scenes._paint(scene, (0, 0), None, brightness), scene.label


@jax.jit
def _truth(scenes: Scenes, indices: jax.Array) -> Truth:
  return scenes.truth(scenes.draw(indices))


def grey_images(scenes: Scenes, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Whole canvases [n, S, S] uint8 and labels [n] int32, in NumPy."""
  return _in_blocks(_images, scenes, indices)


def truth(scenes: Scenes, indices: np.ndarray) -> Truth:
  """The truth of scenes by number, in NumPy."""
  return _in_blocks(_truth, scenes, indices)


def _in_blocks(function, scenes, indices):
  # Two sizes of blocks are compiled, and bound the memory.
  indices = np.asarray(indices, np.int32)
  most = min(max(_BLOCK_BYTES // scenes.recipe.size**2, 1), _BLOCK)
  block = 1 if len(indices) == 1 else most
  found = []
  for begin in range(0, max(len(indices), 1), block):
    part = indices[begin : begin + block]
    padded = np.zeros(block, np.int32)
    padded[: len(part)] = part
    with _one_compiles:
      blocks = function(scenes, padded)
    found.append(jax.tree.map(np.asarray, blocks))
  return jax.tree.map(lambda *leaves: np.concatenate(leaves)[: len(indices)], *found)
