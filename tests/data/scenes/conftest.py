"""Sprites that are known without reading anything, and all that can be seen of some scenes."""

import functools

import jax
import numpy as np
import pytest

import jattn.data

CLASSES, OF_EACH, BATCH = 10, 6, 96
SPLITS = ('train', 'choose', 'test')
# Small canvases: of the four kinds, and of the megapixel both orders.
KINDS = {
  'cluttered': 'cluttered?size=60&clutter=4',
  'under': 'megapixel?size=160&noise=9',
  'over': 'megapixel?size=160&noise=9&order=over',
  'paired': 'paired?size=80',
  'shortcut': 'shortcut?size=60',
}


def sprite(split: str, row: int) -> np.ndarray:
  """[28, 28] uint8: faint and bright pixels within a dark margin; row is of class row % 10."""
  raw = np.random.Philox(np.random.SeedSequence([SPLITS.index(split), row])).random_raw(50)
  drawn = raw.astype('<u8').view(np.uint8).reshape(20, 20)
  found = np.zeros((28, 28), np.uint8)
  found[4:24, 4:24] = np.where(drawn > 120, drawn, drawn // 4)
  return found


@pytest.fixture(scope='session')
def sprites() -> dict[str, np.ndarray]:
  """[60, 28, 28] of each split."""
  return {
    split: np.stack([sprite(split, row) for row in range(CLASSES * OF_EACH)]) for split in SPLITS
  }


@pytest.fixture(scope='session')
def load(sprites, tmp_path_factory):
  """'cluttered?size=60' -> the dataset, of the sprites above."""
  file = tmp_path_factory.mktemp('sprites') / 'sprites.npz'
  labels = np.arange(CLASSES * OF_EACH) % CLASSES
  np.savez(
    file,
    **{f'x_{split}': sprites[split] for split in SPLITS},
    **{f'y_{split}': labels for split in SPLITS},
  )

  def loaded(name, **settings):
    joint = '&' if '?' in name else '?'
    return jattn.data.load(f'scenes:{name}{joint}sprites=npz:{file}', **settings)

  loaded.file = file
  return loaded


@jax.jit
def look(scenes, indices):
  scene = scenes.draw(indices)
  return scene, scenes.render(scene), scenes.truth(scene)


@pytest.fixture(scope='session')
def see(load):
  """(kind, split) -> (scene, images, truth) of scenes 0..95, in NumPy; compiled once a kind."""

  @functools.cache
  def seen(kind, split):
    scenes = dataset(kind).scenes(split)
    return jax.tree.map(np.asarray, look(scenes, np.arange(BATCH)))

  @functools.cache
  def dataset(kind):
    return load(KINDS[kind], in_memory=False)

  seen.dataset = dataset
  return seen
