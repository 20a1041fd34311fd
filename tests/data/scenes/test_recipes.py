"""What each kind of scene promises, checked on its pixels."""

import hashlib

import numpy as np
import pytest

from jattn.data.scenes import INK, patterns
from tests.data.scenes.conftest import BATCH, CLASSES, KINDS, SPLITS


def crops(images, boxes):
  """[B, S, S, 3], [B, K, 4] -> [B, K, h, w], h and w those of the first box."""
  return np.stack(
    [
      [image[top:bottom, left:right, 0] for top, left, bottom, right in row]
      for image, row in zip(images, boxes, strict=True)
    ]
  )


def rows_shown(pieces, table):
  """[n, 28, 28] -> [n] the row of `table` that each is exactly, -1 for none."""
  same = (pieces[:, None] == table[None]).all(axis=(2, 3))
  return np.where(same.any(axis=1), same.argmax(axis=1), -1)


@pytest.mark.parametrize('kind', KINDS)
def test_scenes_are_goldens(see, kind):
  # Figures are measured on these scenes: they change with `SCENES_VERSION` and never otherwise.
  scene, images, truth = see(kind, 'test')
  joined = hashlib.sha256()
  for array in (scene.label, images, truth.masks, truth.boxes):
    joined.update(np.ascontiguousarray(array).tobytes())
  assert joined.hexdigest()[:16] == GOLDENS[kind]


GOLDENS = {
  'cluttered': '124a9cc5e3cd61c3',
  'under': '2b5ac2a29b83a775',
  'over': '942f120a66a68a11',
  'paired': '44f8402c15a5dd3a',
  'shortcut': '9e1c53f6d18a982b',
}


@pytest.mark.parametrize('kind', ['cluttered', 'under', 'paired', 'shortcut'])
@pytest.mark.parametrize('split', SPLITS)
def test_label_is_what_the_object_shows(see, sprites, kind, split):
  scene, images, truth = see(kind, split)
  pieces = crops(images, truth.boxes).reshape(-1, 28, 28)
  table = np.concatenate([sprites[name] for name in SPLITS])
  if kind == 'cluttered':  # clutter makes a digit brighter in places, and never darker
    shown = (pieces[:, None] >= table[None]).all(axis=(2, 3))
    assert (shown.sum(axis=1) == 1).all()
    rows = shown.argmax(axis=1)
  else:
    rows = rows_shown(pieces, table)
  np.testing.assert_array_equal(rows // len(sprites[split]), SPLITS.index(split))
  labels = np.repeat(scene.label, truth.boxes.shape[1])
  np.testing.assert_array_equal(rows % CLASSES, labels)
  assert set(labels) == set(range(CLASSES))


@pytest.mark.parametrize(
  ('kind', 'fraction'),
  [('cluttered', 784 / 60**2), ('under', 3 * 784 / 160**2), ('paired', 784 / 80**2)],
)
def test_areas_are_the_closed_form(see, kind, fraction):
  _, images, truth = see(kind, 'test')
  covered = np.zeros(images.shape[:3], bool)
  for index, row in enumerate(truth.boxes):
    for top, left, bottom, right in row:
      covered[index, top:bottom, left:right] = True
  assert abs(covered.mean() / fraction - 1) < 0.01
  np.testing.assert_allclose(truth.chance_of_boxes, covered.mean(axis=(1, 2)))
  np.testing.assert_allclose(truth.chance_of_masks, truth.masks.sum(axis=(1, 2)) / covered[0].size)
  assert (covered | ~truth.masks).all(), 'ink outside its box'
  assert not (truth.masks & truth.distractor_masks).any()
  lit = images[..., 0] > INK
  assert (lit | ~(truth.masks | truth.distractor_masks)).all(), 'ink that does not show'


def test_cluttered_places(see):
  scene, _, truth = see('cluttered', 'test')
  clutter, digit = scene.layers
  assert clutter.rows.shape == (BATCH, 4)
  for corners, last in ((digit.corners, 32), (clutter.corners, 52), (clutter.offsets, 20)):
    assert (corners.min(), corners.max()) == (0, last)
    spread = np.sqrt(((last + 1) ** 2 - 1) / 12 / len(corners[..., 0].ravel()))
    np.testing.assert_allclose(corners.reshape(-1, 2).mean(axis=0), last / 2, atol=5 * spread)
  assert truth.distractor_boxes.shape == (BATCH, 4, 4)
  np.testing.assert_array_equal(truth.distractor_boxes[..., 2:], clutter.corners + 8)


def test_megapixel_has_a_majority(see, sprites):
  scene, images, truth = see('under', 'test')
  assert truth.boxes.shape == (BATCH, 3, 4)
  assert truth.distractor_boxes.shape == (BATCH, 9 + 2, 4)
  digits = [layer for layer in scene.layers if layer.table == 'sprites']
  corners = np.concatenate([layer.corners for layer in digits], axis=1)
  boxes = np.concatenate([corners, corners + 28], axis=2)
  # Noise lies under the digits: every digit is there whole, byte by byte.
  rows = rows_shown(crops(images, boxes).reshape(-1, 28, 28), sprites['test']).reshape(BATCH, 5)
  assert (rows >= 0).all()
  np.testing.assert_array_equal(rows[:, :3] % CLASSES, scene.label.repeat(3).reshape(BATCH, 3))
  assert (rows[:, 3:] % CLASSES != scene.label[:, None]).all()
  assert (rows[:, 0] != rows[:, 1]).any()
  distance = np.abs(corners[:, :, None] - corners[:, None]).max(axis=3)
  assert (distance + 28 * np.eye(5, dtype=int)[None] >= 28).all()
  noise = next(layer for layer in scene.layers if layer.table == 'noise')
  assert (noise.corners.min(), noise.corners.max()) == (28, 160 - 29)
  banks = [np.asarray(see.dataset('under').scenes(split).patterns['noise']) for split in SPLITS]
  assert (banks[0] != banks[1]).any()
  assert (banks[0] != banks[2]).any()
  assert (banks[1] != banks[2]).any()


def test_noise_over_digits_erases(see):
  (scene, _, under), (other, _, over) = see('under', 'test'), see('over', 'test')
  np.testing.assert_array_equal(scene.label, other.label)
  np.testing.assert_array_equal(under.boxes, over.boxes)
  assert (under.masks | ~over.masks).all()
  lost = (under.masks & ~over.masks).any(axis=(1, 2))
  assert 0.3 < lost.mean() < 1


def test_paired_frames_the_label(see, sprites):
  scene, images, truth = see('paired', 'test')
  ring = patterns.frame()[0] > 0
  assert ring.sum() == 4 * 31
  margin = np.array([-2, -2, 2, 2])
  around, aside = (
    crops(np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0))), boxes + margin + 2)[:, 0]
    for boxes in (truth.boxes, truth.distractor_boxes)
  )
  assert (around[:, ring] == 160).all(), 'the frame is around the digit of the label'
  # Whoever does not see the frame sees the two alike: a dark margin, another class.
  inner = around.copy()
  inner[:, ring] = 0
  rows = [rows_shown(cells[:, 2:-2, 2:-2], sprites['test']) for cells in (inner, aside)]
  assert (np.stack(rows) >= 0).all()
  np.testing.assert_array_equal(rows[0] % CLASSES, scene.label)
  assert (rows[1] % CLASSES != scene.label).all()
  assert not aside[:, ring].any()
  assert not (truth.masks | truth.distractor_masks)[images[..., 0] == 160].all()
  # Neither digit is the upper or the left one more often than chance.
  higher = (truth.boxes[:, 0, :2] < truth.distractor_boxes[:, 0, :2]).mean(axis=0)
  np.testing.assert_allclose(higher, 0.5, atol=5 * 0.5 / np.sqrt(BATCH))


def test_shortcut_tells_in_train_and_lies_in_test(see):
  cues = patterns.cues(CLASSES)
  assert (cues == 255).sum(axis=(1, 2)).tolist() == [4] * CLASSES
  agree = {}
  for split in SPLITS:
    scene, images, truth = see('shortcut', split)
    np.testing.assert_array_equal(truth.distractor_boxes[:, 0], [[0, 0, 8, 8]] * BATCH)
    shown = (images[:, None, :8, :8, 0] == cues[None]).all(axis=(2, 3))
    assert (shown.sum(axis=1) == 1).all()
    agree[split] = shown.argmax(axis=1) == scene.label
    assert truth.boxes[..., :2].min() >= 8, 'the digit lies clear of the cue'
  assert agree['train'].all()
  assert agree['choose'].all()
  # Binomial(96, 1 / 10): five standard deviations.
  assert abs(agree['test'].mean() - 0.1) < 5 * np.sqrt(0.09 / BATCH)


def test_noise_is_two_lines():
  noise = patterns.line_noise(50, (0, 1))
  assert noise.shape == (50, 28, 28)
  assert noise.dtype == np.uint8
  assert set(np.unique(noise)) == {0, *range(204, 255)}
  assert noise[:, 0, 0].all(), 'the first line of each leaves the corner'
  ink = (noise > 0).sum(axis=(1, 2))
  assert ink.min() >= 28
  assert ink.max() <= 4 * 56
  mirrored = (noise[:, 0, 27] > 0).sum()
  assert 5 <= mirrored <= 40  # of 50, expected 22
  assert (patterns.line_noise(50, (0, 2)) != noise).any()
