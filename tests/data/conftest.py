"""Small datasets, written here: no test reads what others prepared, or writes where users do."""

import io
import pathlib

import numpy as np
import pytest
from PIL import Image

TINY = {'train': 70, 'test': 30}
TINY_CLASSES = ('ant', 'bee', 'cat', 'dog', 'eel')


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  monkeypatch.delenv('TFDS_DATA_DIR', raising=False)


def png(pixels: np.ndarray) -> bytes:
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, 'PNG')
  return stream.getvalue()


def tiny_example(split: str, index: int) -> tuple[np.ndarray, int]:
  """The image [12, 12, 3] and label of one example, known without reading anything."""
  rng = np.random.default_rng([index, split == 'test'])
  return rng.integers(0, 256, (12, 12, 3), np.uint8), index % len(TINY_CLASSES)


@pytest.fixture(scope='session')
def tiny_root(tmp_path_factory) -> pathlib.Path:
  """A TFDS directory with 'tiny' prepared as array_record, without TensorFlow."""
  import tensorflow_datasets as tfds

  class Tiny(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    VERSION = tfds.core.Version('1.2.0')

    def _info(self):
      return tfds.core.DatasetInfo(
        builder=self,
        features=tfds.features.FeaturesDict(
          {
            'id': tfds.features.Text(),
            'picture': tfds.features.Image(shape=(12, 12, 3), encoding_format='png'),
            'animal': tfds.features.ClassLabel(names=TINY_CLASSES),
          }
        ),
        supervised_keys=('picture', 'animal'),
      )

    def _split_generators(self, dl_manager):
      return {split: self._generate_examples(split) for split in TINY}

    def _generate_examples(self, split):
      for index in range(TINY[split]):
        image, label = tiny_example(split, index)
        yield index, {'id': str(index), 'picture': io.BytesIO(png(image)), 'animal': label}

  root = tmp_path_factory.mktemp('tfds')
  Tiny(data_dir=root, file_format='array_record').download_and_prepare()
  return root
