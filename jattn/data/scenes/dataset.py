"""Scenes as a dataset like any other, which also knows where the answer lies."""

import functools
from collections.abc import Sequence

import numpy as np

from jattn.data.dataset import Dataset
from jattn.data.errors import DataError
from jattn.data.images import Square
from jattn.data.scenes.scenes import Scenes, Truth, grey_images, truth

# mean and std of a streamed dataset are taken over this many pixels, and 64..2,048 images
_SAMPLE_PIXELS = 1 << 26
_CHUNK_PIXELS = 1 << 23


class SceneExamples:
  """The scenes of one split, rendered when they are read."""

  def __init__(self, scenes: Scenes | None, count: int):
    self.scenes, self._count = scenes, count  # no scenes where the count is 0

  def __len__(self) -> int:
    return self._count

  def read(self, indices: Sequence[int], square: Square) -> tuple[np.ndarray, np.ndarray]:
    size = square.size
    if self.scenes is None:
      return np.zeros((0, size, size, 3), np.uint8), np.zeros(0, np.int32)
    if (size, square.crop_ratio) != (self.scenes.recipe.size, 1):
      raise ValueError(f'{size=} must be that of the canvas, {self.scenes.recipe.size}')
    images, labels = grey_images(self.scenes, np.asarray(indices))
    return np.repeat(images[..., None], 3, axis=-1), labels


class SceneDataset(Dataset):
  """A `Dataset` of scenes: example i of a split is scene number i.

  As everywhere, batch `step` of `batches(split, batch_size=B, seed=s)` holds the examples
  `jattn.data.order(s, step, batch_size=B, num_examples=n)`, and `eval_batches` all in order.
  """

  def scenes(self, split: str) -> Scenes:
    """The scenes of 'train', 'choose' or 'test', to draw and render them inside `jit`.

    Raises:
      DataError: the split is empty.
    """
    found = self._split(split).examples.scenes
    if found is None:
      raise DataError(f'{self.name}: split {split!r} is empty')
    return found

  def truth(self, split: str, indices: Sequence[int]) -> Truth:
    """Masks, boxes and chance levels of examples of a split, in NumPy.

    Raises:
      ValueError: an index outside 0..num_examples(split) - 1.
    """
    indices = np.asarray(indices, np.int64)
    count = self.num_examples(split)
    wrong = indices[(indices < 0) | (indices >= count)]
    if wrong.size:
      raise ValueError(f'index {wrong[0]} of split {split!r} must be in 0..{count - 1}')
    return truth(self.scenes(split), indices)

  @functools.cached_property
  def _moments(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if self.in_memory:
      return super()._moments
    # A canvas may have 500 times the pixels of a photograph: fewer of them, and of one channel.
    count = self.num_examples('train')
    most = int(np.clip(_SAMPLE_PIXELS // self.size**2, 64, 2048))
    indices = np.linspace(0, count - 1, min(count, most)).astype(np.int64)
    histogram = np.zeros(256, np.int64)
    chunk = max(_CHUNK_PIXELS // self.size**2, 1)
    for begin in range(0, len(indices), chunk):
      images, _ = grey_images(self.scenes('train'), indices[begin : begin + chunk])
      histogram += np.bincount(images.ravel(), minlength=256)
    levels, share = np.arange(256) / 255, histogram / histogram.sum()
    mean = share @ levels
    std = np.sqrt(share @ (levels - mean) ** 2)
    return (float(mean),) * 3, (float(std),) * 3
