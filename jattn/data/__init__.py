"""A name becomes batches: datasets, their order, and augmentation on the device.

dataset = jattn.data.load('digits')
for batch in dataset.batches(batch_size=128, seed=0): ...
"""

from jattn.data import augment, scenes
from jattn.data.dataset import Dataset
from jattn.data.errors import DataError
from jattn.data.images import decode, fit
from jattn.data.loading import load
from jattn.data.stream import order, stream_fingerprint

__all__ = [
  'DataError',
  'Dataset',
  'augment',
  'decode',
  'fit',
  'load',
  'order',
  'scenes',
  'stream_fingerprint',
]
