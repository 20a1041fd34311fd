import shutil
import warnings

import numpy as np
import pytest

import jattn.data
from jattn.data import DataError
from tests.data.conftest import png

SIZE = 6


def write(path, seed, shade=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  image = np.random.default_rng(seed).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
  path.write_bytes(png(image))
  return image


@pytest.fixture
def flat(tmp_path):
  """PATH/CLASS/*: two classes of 60."""
  root = tmp_path / 'flat'
  for index in range(120):
    write(root / ('cat', 'dog')[index % 2] / f'{index:03}.png', index)
  return root


@pytest.fixture
def split(tmp_path):
  """PATH/SPLIT/CLASS/*."""
  root = tmp_path / 'split'
  for part, (name, count) in enumerate((('train', 40), ('test', 10), ('val', 8))):
    for index in range(count):
      write(root / name / ('cat', 'dog')[index % 2] / f'{index:03}.png', 1000 * part + index)
  return root


def load(root, **settings):
  return jattn.data.load(f'folder:{root}', **{'size': SIZE, **settings})


def contents(dataset, split_name):
  return {image.tobytes() for image in dataset.arrays(split_name)[0]}


def test_split_folders(split):
  dataset = load(split)
  assert dataset.class_names == ('cat', 'dog')
  assert [dataset.num_examples(s) for s in ('train', 'choose', 'test')] == [40, 8, 10]
  images, labels = dataset.arrays('test')
  for label in (0, 1):
    for place, index in enumerate(range(label, 10, 2)):
      expected = np.random.default_rng(1000 + index).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
      np.testing.assert_array_equal(images[labels == label][place], expected)


def test_val_is_test_where_there_is_no_test_and_choose_comes_from_train(split):
  shutil.rmtree(split / 'test')
  dataset = load(split, choose_fraction=0.2)
  assert dataset.num_examples('test') == 8
  assert dataset.num_examples('train') + dataset.num_examples('choose') == 40
  assert 2 <= dataset.num_examples('choose') <= 16
  assert not contents(dataset, 'train') & contents(dataset, 'choose')


def test_flat_folder_is_split_by_path_and_adding_moves_nothing(flat):
  before = load(flat)
  sizes = {s: before.num_examples(s) for s in ('train', 'choose', 'test')}
  assert sum(sizes.values()) == 120
  assert 4 <= sizes['test'] <= 24
  assert 4 <= sizes['choose'] <= 24
  parts = {s: contents(before, s) for s in sizes}
  assert len(set.union(*parts.values())) == 120
  mostly_choose = load(flat, choose_fraction=0.6)
  assert sum(mostly_choose.num_examples(s) for s in sizes) == 120
  for index in range(50):
    write(flat / 'cat' / f'a{index}.png', 5000 + index)
  after = load(flat)
  for s in sizes:
    assert parts[s] <= contents(after, s)
  assert contents(load(flat, seed_of_split=7), 'test') == contents(after, 'test')
  assert contents(load(flat, seed_of_split=7), 'choose') != contents(after, 'choose')


def test_a_moved_copy_is_the_same_dataset_and_a_changed_one_is_not(split, tmp_path):
  before = load(split).fingerprint
  shutil.copytree(split, tmp_path / 'moved')
  assert load(tmp_path / 'moved').fingerprint == before
  write(tmp_path / 'moved' / 'train' / 'cat' / '000.png', 77)
  assert load(tmp_path / 'moved').fingerprint != before


def test_default_size_is_224(split):
  assert load(split, size=None).size == 224


def test_hidden_files_are_passed_over_and_nested_ones_read(split):
  (split / 'train' / 'cat' / '.DS_Store').write_bytes(b'x')
  (split / 'train' / '.git').mkdir()
  write(split / 'train' / 'cat' / '.thumbs' / 'x.png', 5)
  write(split / 'train' / 'cat' / 'more' / 'x.PNG', 6)
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert load(split).num_examples('train') == 41


def test_unknown_extensions_are_reported(split):
  (split / 'train' / 'cat' / 'notes.txt').write_text('x')
  (split / 'train' / 'dog' / 'scan.tiff').write_text('x')
  with pytest.warns(UserWarning, match=r'left out 2 files.*\.txt \(1\), \.tiff \(1\).*\.webp'):
    assert load(split).num_examples('train') == 40


def test_streamed_equals_memory(split):
  memory, streamed = load(split), load(split, in_memory=False)
  for _, a, b in zip(
    range(9),
    memory.batches(batch_size=7, seed=0),
    streamed.batches(batch_size=7, seed=0),
    strict=False,
  ):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)


@pytest.mark.parametrize('in_memory', [True, False])
@pytest.mark.parametrize(
  'content',
  [b'', b'<html>404</html>', png(np.arange(81, dtype=np.uint8).reshape(9, 9))[:50]],
  ids=['empty', 'html', 'truncated'],
)
def test_a_bad_image_is_named(split, content, in_memory):
  bad = split / 'test' / 'dog' / '003.png'
  bad.write_bytes(content)

  def read():
    return list(load(split, in_memory=in_memory).eval_batches('test', batch_size=4))

  with pytest.raises(DataError) as raised:
    read()
  assert str(bad) in str(raised.value)
  assert 'skip' in str(raised.value)


@pytest.mark.parametrize('in_memory', [True, False])
@pytest.mark.parametrize('eval_size', [None, 4])
def test_skipping_counts_and_has_a_ceiling(tmp_path, in_memory, eval_size):
  for index in range(200):
    write(tmp_path / 'x' / ('train', 'test')[index % 2] / 'cat' / f'{index:03}.png', index)
  bad = tmp_path / 'x' / 'train' / 'cat' / '010.png'
  settings = {'in_memory': in_memory, 'eval_size': eval_size, 'on_bad_image': 'skip'}
  settings['cache_dir'] = tmp_path / 'c'
  whole = load(tmp_path / 'x', choose_fraction=0, **settings)
  bad.write_bytes(bad.read_bytes()[:60])
  for _ in range(2):  # decoded, then from the cache
    with pytest.warns(UserWarning, match='skipped 1 of 200 images'):
      dataset = load(tmp_path / 'x', choose_fraction=0, **settings)
    assert dataset.num_examples('train') == 99
    assert dataset.fingerprint != whole.fingerprint
    seen = [next(dataset.batches(batch_size=99, seed=0))]
    assert (seen[0].labels == 0).all()
    assert seen[0].images.any(axis=(1, 2, 3)).all(), 'no blank stands in for the bad image'
  with pytest.raises(DataError, match=r'010\.png'):
    load(tmp_path / 'x', in_memory=True, cache_dir=tmp_path / 'c', choose_fraction=0)
  for index in (12, 14):
    (tmp_path / 'x' / 'train' / 'cat' / f'{index:03}.png').write_bytes(b'')
  with pytest.raises(DataError, match='3 of 200 images cannot be decoded: more than 1%'):
    load(tmp_path / 'x', **settings)


def test_max_pixels_reaches_the_decoder(split):
  with pytest.raises(DataError, match='max_pixels=35'):
    load(split, max_pixels=35)


def test_wrong_folders(tmp_path, split):
  with pytest.raises(DataError, match='no such folder'):
    load(tmp_path / 'nothing')
  (tmp_path / 'empty').mkdir()
  with pytest.raises(DataError, match=r'expected .*CLASS'):
    load(tmp_path / 'empty')
  write(split / 'test' / 'emu' / 'x.png', 1)
  with pytest.raises(DataError, match="class 'emu' of split 'test' is not in train"):
    load(split)
  shutil.rmtree(split / 'test' / 'emu')
  (split / 'train' / 'fox').mkdir()
  (split / 'train' / 'fox' / 'x.tiff').write_bytes(b'x')
  with pytest.raises(DataError, match=r'fox holds no images .*\.tiff \(1\)'):
    load(split)


def test_a_class_without_training_example_is_told(tmp_path):
  # All three files of 'b' fall into the test split by their hash: found by trying names.
  for index in range(60):
    write(tmp_path / 'x' / 'a' / f'{index}.png', index)
  from jattn.data.splitting import TEST_FRACTION, split_paths

  names = [f'b/{index}.png' for index in range(200)]
  held_out = split_paths(names, fraction=TEST_FRACTION, salt='test')
  write(tmp_path / 'x' / names[int(held_out.argmax())], 99)
  with pytest.warns(UserWarning, match="1 of 2 classes have no training example: 'b'"):
    load(tmp_path / 'x')
