import shutil
import time

import numpy as np
import pytest

import jattn.data
from jattn.data import DataError
from tests.data.conftest import TINY, TINY_CLASSES, tiny_example


@pytest.fixture
def copy(tiny_root, tmp_path):
  """A copy that a test may damage: (TFDS directory, directory of the version)."""
  shutil.copytree(tiny_root, tmp_path / 'tfds')
  return tmp_path / 'tfds', tmp_path / 'tfds' / 'tiny' / '1.2.0'


def record_file(directory, split='train'):
  (file,) = directory.glob(f'*-{split}.array_record*')
  return file


def evaluate(root, *, in_memory):
  """Loads and reads the test split: where a streamed dataset is only opened on loading."""
  dataset = jattn.data.load('tfds:tiny', data_dir=root, in_memory=in_memory)
  return list(dataset.eval_batches('test', batch_size=4))


def test_reads_what_was_written(tiny_root):
  dataset = jattn.data.load('tfds:tiny', data_dir=tiny_root)
  assert dataset.class_names == TINY_CLASSES
  assert dataset.size == 12
  assert dataset.label == 'tfds:tiny/1.2.0'
  expected = {
    split: {(image.tobytes(), label) for image, label in (tiny_example(split, i) for i in range(n))}
    for split, n in TINY.items()
  }
  found = {
    split: {(i.tobytes(), int(y)) for i, y in zip(*dataset.arrays(split), strict=True)}
    for split in ('train', 'choose', 'test')
  }
  assert found['test'] == expected['test']
  assert found['train'] | found['choose'] == expected['train']
  assert not found['train'] & found['choose']
  assert len(found['choose']) == 7


def test_the_directory_of_the_environment_and_versions(tiny_root, monkeypatch, tmp_path):
  monkeypatch.setenv('TFDS_DATA_DIR', str(tiny_root))
  assert jattn.data.load('tfds:tiny:1.2.0').num_examples('test') == 30
  with pytest.raises(DataError, match='not prepared'):
    jattn.data.load('tfds:tiny', data_dir=tmp_path)  # the argument wins
  with pytest.raises(DataError, match=r'version 1\.2\.0'):
    jattn.data.load('tfds:tiny:1.3.0')
  with pytest.raises(DataError, match='MAJOR'):
    jattn.data.load('tfds:../tiny')


def test_newest_version_and_only_config(copy):
  root, directory = copy
  shutil.copytree(directory, directory.with_name('1.10.0'))
  info = directory.with_name('1.10.0') / 'dataset_info.json'
  info.write_text(info.read_text().replace('1.2.0', '1.10.0'))
  assert jattn.data.load('tfds:tiny', data_dir=root).label == 'tfds:tiny/1.10.0'
  shutil.move(root / 'tiny', root / 'plain')
  (root / 'tiny').mkdir()
  shutil.move(root / 'plain', root / 'tiny' / 'plain')
  assert jattn.data.load('tfds:tiny', data_dir=root).num_examples('test') == 30
  shutil.copytree(root / 'tiny' / 'plain', root / 'tiny' / 'spotted')
  with pytest.raises(DataError, match='tfds:tiny/plain, tfds:tiny/spotted'):
    jattn.data.load('tfds:tiny', data_dir=root)
  assert jattn.data.load('tfds:tiny/spotted', data_dir=root).num_examples('test') == 30


def test_streamed_equals_memory(tiny_root):
  memory = jattn.data.load('tfds:tiny', data_dir=tiny_root, size=9)
  streamed = jattn.data.load('tfds:tiny', data_dir=tiny_root, size=9, in_memory=False)
  for a, b in zip(
    memory.eval_batches('choose', batch_size=4),
    streamed.eval_batches('choose', batch_size=4),
    strict=True,
  ):
    np.testing.assert_array_equal(a.images, b.images)
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.mask, b.mask)


def test_not_prepared_says_so_at_once(tmp_path, tiny_root):
  begin = time.perf_counter()
  with pytest.raises(DataError) as raised:
    jattn.data.load('tfds:cifar10', data_dir=tmp_path)
  assert time.perf_counter() - begin < 5
  message = str(raised.value)
  assert 'tfds:cifar10 is not prepared in' in message
  assert "tfds.builder('cifar10', file_format='array_record').download_and_prepare()" in message
  assert '--data-dir' in message
  assert "'digits'" in message
  assert len(message) < 800
  with pytest.raises(DataError, match='prepared there: tiny'):
    jattn.data.load('tfds:nosuchthing', data_dir=tiny_root)


def test_flipped_bits_are_never_silent(copy):
  root, directory = copy
  file = record_file(directory)
  good = file.read_bytes()
  whole = [a.tobytes() for a in jattn.data.load('tfds:tiny', data_dir=root).arrays('train')]
  rng = np.random.default_rng(0)
  used = int(np.flatnonzero(np.frombuffer(good, np.uint8)[: 1 << 16]).max())
  raised = 0
  for place in rng.integers(0, used, 12):
    bad = bytearray(good)
    bad[place] ^= 1 << int(rng.integers(8))
    file.write_bytes(bad)
    try:
      found = jattn.data.load('tfds:tiny', data_dir=root).arrays('train')
    except DataError as error:
      raised += 1
      message = str(error)
    else:
      message = f"tiny 'train' {file}"
      assert [a.tobytes() for a in found] == whole
    for word in ('tiny', "'train'", str(file)):
      assert word in message
  assert raised >= 6


@pytest.mark.parametrize('in_memory', [True, False])
@pytest.mark.parametrize('damage', ['truncated', 'empty', 'gone'])
def test_damaged_files(copy, damage, in_memory):
  root, directory = copy
  file = record_file(directory, 'test')
  if damage == 'gone':
    file.unlink()
  else:
    file.write_bytes(file.read_bytes()[: 70000 if damage == 'truncated' else 0])
  with pytest.raises(DataError) as raised:
    evaluate(root, in_memory=in_memory)
  for word in ('tfds:tiny', "'test'", str(file)):
    assert word in str(raised.value)


@pytest.mark.parametrize('name', ['dataset_info.json', 'features.json'])
def test_damaged_json(copy, name):
  root, directory = copy
  (directory / name).write_text('{"featuresDict": [')
  with pytest.raises(DataError, match='tfds:tiny: cannot read'):
    jattn.data.load('tfds:tiny', data_dir=root)


def test_tfrecord_is_refused_with_what_to_run(copy):
  root, directory = copy
  info = directory / 'dataset_info.json'
  info.write_text(info.read_text().replace('"array_record"', '"tfrecord"'))
  for file in directory.glob('*array_record*'):
    file.rename(file.with_name(file.name.replace('array_record', 'tfrecord')))
  with pytest.raises(DataError, match=r'(?s)prepared as tfrecord, not array_record.*builder'):
    jattn.data.load('tfds:tiny', data_dir=root)


@pytest.mark.parametrize('in_memory', [True, False])
def test_label_out_of_range(copy, in_memory):
  root, directory = copy
  whole = jattn.data.load('tfds:tiny', data_dir=root, choose_fraction=0)
  split = 'train' if in_memory else 'test'  # in memory everything is read, train first
  index = int(np.argmax(whole.arrays(split)[1] == 4))
  assert in_memory or index > 0
  features = directory / 'features.json'
  features.write_text(features.read_text().replace('"numClasses": "5"', '"numClasses": "4"'))
  for file in directory.glob('*labels.txt'):
    file.write_text('\n'.join(TINY_CLASSES[:4]))
  with pytest.raises(
    DataError, match=rf"label 4 of example {index} in split '{split}' is outside 0\.\.3"
  ):
    evaluate(root, in_memory=in_memory)


def test_a_dataset_without_image_and_label(copy):
  root, directory = copy
  info = directory / 'dataset_info.json'
  info.write_text(info.read_text().replace('"picture"', '"id"'))
  with pytest.raises(DataError, match="feature 'id' should be a Image"):
    jattn.data.load('tfds:tiny', data_dir=root)


def test_validation_stands_in_for_test(copy):
  root, directory = copy
  info = directory / 'dataset_info.json'
  info.write_text(info.read_text().replace('"test"', '"validation"'))
  file = record_file(directory, 'test')
  file.rename(file.with_name(file.name.replace('test', 'validation')))
  assert jattn.data.load('tfds:tiny', data_dir=root).num_examples('test') == 30
  info.write_text(info.read_text().replace('"validation"', '"unsupervised"'))
  dataset = jattn.data.load('tfds:tiny', data_dir=root)
  assert [dataset.num_examples(s) for s in ('train', 'choose', 'test')] == [57, 6, 7]
