import jax
import jax.numpy as jnp
import numpy as np

from jattn.data import augment
from jattn.data.augment import erasing
from tests.data.augment.conftest import B


def test_erasing_against_numpy(images):
  boxes = np.array(
    [[0, 0, 2, 3], [5, 7, 7, 9], [0, 0, 0, 0], [0, 0, 7, 9], [2, 3, 3, 4], [1, 1, 6, 2]]
  )
  found = np.asarray(erasing.erase(images, jnp.asarray(boxes), fill=0.5))
  for i, (top, left, bottom, right) in enumerate(boxes[:B]):
    expected = np.array(images[i])
    expected[top:bottom, left:right] = 0.5
    np.testing.assert_array_equal(found[i], expected)


def test_erased_boxes_keep_to_their_settings():
  area, aspect = (0.1, 0.3), (0.5, 2.0)
  draw = jax.jit(erasing.draw_boxes, static_argnums=1, static_argnames=('area', 'aspect'))
  boxes = np.asarray(
    draw(jax.random.key(0), (3000, 40, 50), probability=0.6, area=area, aspect=aspect)
  )
  top, left, bottom, right = boxes.T
  h, w = bottom - top, right - left
  some = h > 0
  assert 0.57 < some.mean() < 0.63
  assert (boxes >= 0).all()
  assert (bottom <= 40).all()
  assert (right <= 50).all()
  part = (h * w)[some] / 2000
  assert area[0] * 0.9 < part.min() < 0.12
  assert 0.28 < part.max() < area[1] * 1.1
  assert abs(part.mean() - 0.2) < 0.01
  logs = np.log(h[some] / w[some])
  assert np.abs(logs).max() < np.log(2) * 1.15
  assert abs(logs.mean()) < 0.02, 'tall and wide are equally likely'
  # Anywhere inside: the centre of the free room is the mean of the places.
  assert abs(((top / np.maximum(40 - h, 1))[some]).mean() - 0.5) < 0.03
  assert top[some].min() == 0
  assert bottom[some].max() == 40
  assert right[some].max() == 50


def test_erasing_leaves_the_image_when_nothing_fits(images, labels):
  # All of the area with a ratio of 1 fits no image of 7 x 9: 8 rows.
  found, _ = augment.random_erasing(
    jax.random.key(0), images, labels, probability=1.0, area=(1.0, 1.0), aspect=(1.0, 1.0)
  )
  np.testing.assert_array_equal(found, images)
  never, _ = augment.random_erasing(jax.random.key(0), images, labels, probability=0.0)
  np.testing.assert_array_equal(never, images)
