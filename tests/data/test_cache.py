import os
import stat

import numpy as np
import pytest

import jattn.data
from jattn.data import cache, loading, prepared


@pytest.fixture
def reads(monkeypatch):
  """Counts the examples that are decoded."""
  counted = []
  original = prepared.Records.read

  def read(self, indices, size):
    counted.extend(indices)
    return original(self, indices, size)

  monkeypatch.setattr(prepared.Records, 'read', read)
  return counted


def load(tiny_root, tmp_path, **settings):
  directory = settings.pop('cache_dir', tmp_path / 'kept')
  return jattn.data.load('tfds:tiny', data_dir=tiny_root, cache_dir=directory, **settings)


def entry(tmp_path):
  (file,) = (tmp_path / 'kept').iterdir()
  return file


def assert_same(one, other):
  for split in ('train', 'choose', 'test'):
    for a, b in zip(one.arrays(split), other.arrays(split), strict=True):
      np.testing.assert_array_equal(a, b)
  assert one.fingerprint == other.fingerprint


def test_second_load_decodes_nothing(tiny_root, tmp_path, reads):
  first = load(tiny_root, tmp_path)
  assert len(reads) == 100
  second = load(tiny_root, tmp_path)
  assert len(reads) == 100
  assert_same(first, second)
  assert stat.S_IMODE((tmp_path / 'kept').stat().st_mode) == 0o700
  load(tiny_root, tmp_path, seed_of_split=3)
  assert len(reads) == 100, 'another split needs no other decoding'
  load(tiny_root, tmp_path, size=9)
  assert len(reads) == 200, 'another size does'
  load(tiny_root, tmp_path, eval_size=9)
  assert len(reads) == 300, 'and so does another one for evaluation'
  assert_same(*(load(tiny_root, tmp_path, eval_size=9) for _ in range(2)))
  assert len(reads) == 300


@pytest.mark.parametrize('place', [3, 20, 90, 128, 5000, -1000, -200, -1])
def test_a_flipped_bit_is_found(tiny_root, tmp_path, reads, place):
  first = load(tiny_root, tmp_path)
  file = entry(tmp_path)
  data = bytearray(file.read_bytes())
  data[place] ^= 1
  file.write_bytes(data)
  with pytest.warns(UserWarning, match='damaged'):
    second = load(tiny_root, tmp_path)
  assert len(reads) == 200
  assert_same(first, second)
  load(tiny_root, tmp_path)
  assert len(reads) == 200, 'the damaged entry was not replaced'


@pytest.mark.parametrize('length', [0, 5, 100, 5000, -1])
def test_a_truncated_entry_is_found(tiny_root, tmp_path, length):
  first = load(tiny_root, tmp_path)
  file = entry(tmp_path)
  file.write_bytes(file.read_bytes()[:length])
  with pytest.warns(UserWarning, match='damaged'):
    assert_same(load(tiny_root, tmp_path), first)


def test_no_pickle_is_read(tiny_root, tmp_path):
  first = load(tiny_root, tmp_path)
  file = entry(tmp_path)
  with open(file, 'wb') as out:
    np.save(out, np.array([{'x': 1}], object), allow_pickle=True)
  with pytest.warns(UserWarning, match='damaged'):
    assert_same(load(tiny_root, tmp_path), first)


def test_an_unwritable_cache_is_no_error(tiny_root, tmp_path):
  (tmp_path / 'file').write_text('not a folder')
  dataset = load(tiny_root, tmp_path, cache_dir=tmp_path / 'file')
  assert dataset.num_examples('test') == 30
  load(tiny_root, tmp_path, cache_dir=tmp_path / 'file' / 'below')


def test_a_full_disk_leaves_nothing_behind(tiny_root, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(os, 'replace', full)
  load(tiny_root, tmp_path)
  assert not list((tmp_path / 'kept').iterdir())


def test_only_large_datasets_are_kept_unasked(tiny_root, tmp_path, monkeypatch, reads):
  jattn.data.load('tfds:tiny', data_dir=tiny_root)
  assert not cache.default_directory().exists()
  monkeypatch.setattr(loading, 'CACHE_FROM_BYTES', 100 * 12 * 12 * 3)
  jattn.data.load('tfds:tiny', data_dir=tiny_root)
  assert cache.default_directory() == tmp_path / 'cache' / 'jattn'
  assert len(list(cache.default_directory().iterdir())) == 1
  jattn.data.load('tfds:tiny', data_dir=tiny_root)
  assert len(reads) == 200


def test_too_large_for_memory_is_streamed(tiny_root, monkeypatch):
  monkeypatch.setattr(loading, 'IN_MEMORY_BYTES', 100 * 12 * 12 * 3)
  assert jattn.data.load('tfds:tiny', data_dir=tiny_root).in_memory
  assert not jattn.data.load('tfds:tiny', data_dir=tiny_root, size=13).in_memory
