import io
import pathlib
import struct
import zipfile

import numpy as np
import pytest

import jattn.data
from jattn.data import DataError

RNG = np.random.default_rng(0)
X = RNG.integers(0, 256, (30, 8, 8, 3), np.uint8)
Y = np.arange(30) % 3


def save(path, **changes):
  arrays = {'x_train': X, 'y_train': Y, 'x_test': X[:9], 'y_test': Y[:9], **changes}
  np.savez(path / 'x.npz', **{name: a for name, a in arrays.items() if a is not None})
  return f'npz:{path}/x.npz'


def load(path, settings=None, **changes):
  return jattn.data.load(save(path, **changes), **(settings or {}))


def test_uint8(tmp_path):
  dataset = load(tmp_path)
  assert (dataset.size, dataset.class_names) == (8, ('0', '1', '2'))
  np.testing.assert_array_equal(dataset.arrays('test')[0], X[:9])
  np.testing.assert_array_equal(dataset.arrays('test')[1], Y[:9])
  assert [dataset.num_examples(s) for s in ('train', 'choose', 'test')] == [27, 3, 9]


def test_grey_with_and_without_a_channel(tmp_path):
  for shape in ((9, 8, 8), (9, 8, 8, 1)):
    grey = X[:9, ..., 0].reshape(shape)
    images, _ = load(tmp_path, x_test=grey).arrays('test')
    np.testing.assert_array_equal(images, np.repeat(X[:9, ..., :1], 3, axis=-1))


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_floats_are_rounded(tmp_path, dtype):
  images, _ = load(tmp_path, x_test=(X[:9] / 255).astype(dtype)).arrays('test')
  np.testing.assert_array_equal(images, X[:9])
  half = np.full((9, 8, 8), 0.499 / 255 + 7 / 255, dtype)
  assert (load(tmp_path, x_test=half).arrays('test')[0] == 7).all()


def test_own_choose_split_and_class_names(tmp_path):
  dataset = load(
    tmp_path, x_choose=X[20:24], y_choose=Y[20:24], class_names=np.array(['a', 'b', 'c'])
  )
  assert dataset.class_names == ('a', 'b', 'c')
  assert [dataset.num_examples(s) for s in ('train', 'choose', 'test')] == [30, 4, 9]
  np.testing.assert_array_equal(dataset.arrays('choose')[0], X[20:24])


def test_sizes(tmp_path):
  mnist = RNG.integers(0, 256, (30, 28, 28), np.uint8)
  dataset = load(tmp_path, x_train=mnist, x_test=mnist[:9])
  assert dataset.size == 32
  np.testing.assert_array_equal(dataset.arrays('test')[0][:, 2:30, 2:30, 0], mnist[:9])
  assert load(tmp_path, x_train=X[:, :6]).size == 224
  assert load(tmp_path, {'size': 5}).arrays('test')[0].shape == (9, 5, 5, 3)


def test_labels_of_one_column(tmp_path):
  np.testing.assert_array_equal(load(tmp_path, y_test=Y[:9, None]).arrays('test')[1], Y[:9])


def replaced(index, value, dtype=None):
  labels = Y.astype(dtype or Y.dtype)
  labels[index] = value
  return labels


WRONG = {
  'label too large': (
    {'y_test': replaced(7, 10)[:9], 'class_names': np.array(list('0123456789'))},
    r"label 10 of example 7 in split 'test' is outside 0\.\.9",
  ),
  'label negative': (
    {'y_train': replaced(17, -1)},
    r"label -1 of example 17 in split 'train' is outside 0\.\.2",
  ),
  'label NaN': (
    {'y_train': replaced(5, np.nan, float)},
    r'float64, not integers.*nan of example 5',
  ),
  'label float': ({'y_train': replaced(6, 0.5, float)}, r'not integers.*0\.5 of example 6'),
  'label whole float': ({'y_train': Y.astype(float)}, 'float64, not integers'),
  'label bool': ({'y_train': Y > 1}, 'bool, not integers'),
  'label string': ({'y_train': Y.astype(str)}, 'not integers'),
  'labels one-hot': ({'y_train': np.eye(3, dtype=int)[Y]}, r"'y_train' has shape \(30, 3\)"),
  'label object': ({'y_train': Y.astype(object)}, "array 'y_train' holds Python objects"),
  'image object': ({'x_train': X.astype(object)}, "array 'x_train' holds Python objects"),
  'missing': ({'x_test': None}, "no array 'x_test'"),
  'missing choose labels': ({'x_choose': X}, "no array 'y_choose'"),
  'lengths': ({'y_train': Y[:29]}, 'x_train has 30 images and y_train 29 labels'),
  'channels': ({'x_train': X[..., :2]}, r"'x_train' has shape \(30, 8, 8, 2\)"),
  'rank': ({'x_train': X[:, 0, 0]}, r"'x_train' has shape \(30, 3\)"),
  'no pixels': ({'x_train': X[:, :0]}, 'without pixels'),
  'int64 images': ({'x_train': X.astype(np.int64)}, "'x_train' is int64, not uint8"),
  'float 0..255': ({'x_train': X.astype(np.float32)}, r'outside \[0, 1\]: image 0'),
  'float NaN': (
    {'x_train': np.where(Y == 2, np.nan, 0.5)[:, None, None] + 0 * X[..., 0]},
    'image 2',
  ),
  'empty train': ({'x_train': X[:0], 'y_train': Y[:0]}, "'train' is empty|outside"),
  'class names twice': ({'class_names': np.array(['a', 'b', 'a'])}, "'class_names' has 'a' twice"),
  'class names': ({'class_names': np.arange(3)}, "'class_names'"),
}


@pytest.mark.parametrize('kind', WRONG)
def test_wrong_arrays(tmp_path, kind):
  changes, message = WRONG[kind]
  name = save(tmp_path, **changes)
  with pytest.raises(DataError, match=message) as raised:
    jattn.data.load(name)
  assert 'x.npz' in str(raised.value)


def test_missing_class_is_told(tmp_path):
  with pytest.warns(UserWarning, match="1 of 4 classes have no training example: '1'"):
    load(tmp_path, y_train=np.where(Y == 1, 3, Y), y_test=Y[:9])


def test_damaged_files(tmp_path):
  with pytest.raises(DataError, match='no such file'):
    jattn.data.load(f'npz:{tmp_path}/none.npz')
  name = save(tmp_path)
  file = pathlib.Path(name.removeprefix('npz:'))
  whole = file.read_bytes()
  for bad in (b'', b'not a zip', whole[: len(whole) // 2]):
    file.write_bytes(bad)
    with pytest.raises(DataError, match=r'cannot be read as \.npz'):
      jattn.data.load(name)
  flipped = bytearray(whole)
  flipped[whole.index(b'x_train.npy') + 1000] ^= 4
  file.write_bytes(flipped)
  with pytest.raises(DataError, match="array 'x_train' is damaged"):
    jattn.data.load(name)


def test_a_huge_declared_shape_is_refused_before_allocation(tmp_path):
  save(tmp_path)
  header = io.BytesIO()
  np.lib.format.write_array_header_1_0(
    header, {'descr': '|u1', 'fortran_order': False, 'shape': (10**9, 32, 32, 3)}
  )
  with zipfile.ZipFile(tmp_path / 'huge.npz', 'w') as out:
    with zipfile.ZipFile(tmp_path / 'x.npz') as source:
      for name in source.namelist():
        if name != 'x_train.npy':
          out.writestr(name, source.read(name))
    out.writestr('x_train.npy', header.getvalue() + struct.pack('<Q', 0))
  with pytest.raises(DataError, match="'x_train' is damaged: its shape"):
    jattn.data.load(f'npz:{tmp_path}/huge.npz')


def test_a_channel_that_never_changes_is_divided_by_one(tmp_path):
  images = X.copy()
  images[..., 2] = 77
  dataset = load(tmp_path, x_train=images)
  assert dataset.std[2] == 1
  assert dataset.std[0] < 1
  assert dataset.mean[2] == pytest.approx(77 / 255)
