"""The pixels of a scene are those that its numbers say, however one asks for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.data.scenes import INK
from tests.data.scenes.conftest import BATCH, KINDS, look


def painted(tables, scene, index, size):
  """A canvas and whose ink shows, pixel by pixel: [size, size], [size, size]."""
  canvas, owner = np.zeros((size, size), int), np.zeros((size, size), int)
  for layer in scene.layers:
    for row, (y, x), (top, left) in zip(
      layer.rows[index], layer.offsets[index], layer.corners[index], strict=True
    ):
      for r in range(layer.side):
        for c in range(layer.side):
          pixel, place = int(tables[layer.table][row, y + r, x + c]), (top + r, left + c)
          if layer.covers:
            canvas[place], owner[place] = pixel, 0
          else:
            canvas[place] = min(255, canvas[place] + pixel)
          if pixel > INK and layer.role != 'marker':
            owner[place] = {'object': 1, 'distractor': 2}[layer.role]
  return canvas, owner


@pytest.mark.parametrize('kind', KINDS)
def test_against_an_oracle(see, kind):
  scene, images, truth = see(kind, 'test')
  scenes = see.dataset(kind).scenes('test')
  tables = {'sprites': scenes.sprites.images, **scenes.patterns}
  tables = {name: np.asarray(table) for name, table in tables.items()}
  for index in range(8):
    canvas, owner = painted(tables, scene, index, images.shape[1])
    np.testing.assert_array_equal(images[index], np.repeat(canvas[..., None], 3, axis=-1))
    np.testing.assert_array_equal(truth.masks[index], owner == 1)
    np.testing.assert_array_equal(truth.distractor_masks[index], owner == 2)
  assert (images.dtype, truth.masks.dtype, truth.boxes.dtype) == (np.uint8, bool, np.int32)


@pytest.mark.parametrize('kind', ['cluttered', 'over'])
def test_crops_tile_the_canvas(see, kind):
  scene, images, truth = (part for part in see(kind, 'test'))
  scenes = see.dataset(kind).scenes('test')
  scene, images = jax.tree.map(lambda leaf: leaf[:4], (scene, images))
  size, side = images.shape[1], 23  # not a divisor: the last crops stick out

  @jax.jit
  def crop(scenes, scene, corner):
    return scenes.render(scene, corner, (side, side)), *scenes.masks(scene, corner, side)

  tiles = range(-side, size + side, side)
  whole = np.zeros((4, len(tiles) * side, len(tiles) * side, 5), np.uint8)
  for y in tiles:
    for x in tiles:
      corner = np.broadcast_to(np.array([y, x], np.int32), (4, 2))
      pixels, objects, distractors = crop(scenes, scene, corner)
      tile = np.concatenate([pixels, objects[..., None], distractors[..., None]], axis=-1)
      whole[:, y + side : y + 2 * side, x + side : x + 2 * side] = tile
  inside = whole[:, side : side + size, side : side + size]
  np.testing.assert_array_equal(inside[..., :3], images)
  np.testing.assert_array_equal(inside[..., 3], truth.masks[:4])
  np.testing.assert_array_equal(inside[..., 4], truth.distractor_masks[:4])
  whole[:, side : side + size, side : side + size] = 0
  assert not whole.any(), 'black outside the canvas'
  # Each scene its own corner.
  corners = np.array([[-5, 3], [7, 30], [20, 11], [size - 9, size - 9]], np.int32)
  pixels, *_ = crop(scenes, scene, corners)
  padded = np.pad(images, ((0, 0), (side, side), (side, side), (0, 0)))
  for index, (y, x) in enumerate(corners + side):
    np.testing.assert_array_equal(pixels[index], padded[index, y : y + side, x : x + side])


@pytest.mark.parametrize('kind', ['cluttered', 'under'])
def test_bytes_are_the_same_in_any_order_and_on_another_device(see, kind, rng):
  expected = see(kind, 'test')
  scenes = see.dataset(kind).scenes('test')
  order = rng.permutation(BATCH)
  scene, images, truth = look(scenes, order)
  found = jax.tree.map(np.asarray, (scene, images, truth))
  jax.tree.map(
    lambda found, expected: np.testing.assert_array_equal(found, expected[order]), found, expected
  )
  there = jax.device_put(scenes, jax.devices()[1])
  scene, images, truth = look(there, np.arange(BATCH))
  assert images.devices() == {jax.devices()[1]}
  found = jax.tree.map(np.asarray, (scene, images, truth))
  jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_a_large_canvas_costs_nothing_until_it_is_looked_at(load):
  scenes = load('megapixel?size=10000&train=1', in_memory=False).scenes('train')

  def crop(scenes, corner):
    scene = scenes.draw(jnp.arange(1))
    return scenes.render(scene, corner, 50), scene.boxes('object')

  compiled = jax.jit(crop).lower(scenes, jnp.zeros(2, jnp.int32)).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < 2**20  # the canvas has 10^8 pixels
  _, boxes = compiled(scenes, jnp.zeros(2, jnp.int32))
  pixels, _ = compiled(scenes, boxes[0, 1, :2])
  table = np.asarray(scenes.sprites.images)
  assert (np.asarray(pixels)[:, :28, :28, 0] == table).all(axis=(1, 2)).any()
