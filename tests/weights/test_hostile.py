"""Files that are damaged, foreign or meant to harm: refused by name, before anything is made."""

import io
import json
import os
import struct
import zipfile

import numpy as np
import pytest
from safetensors.numpy import save

from jattn.weights import WeightsError, load_weights, safetensors
from tests.weights import small

MODEL = small.model(2, width=2)
VARIABLES = small.draw(MODEL)
F32 = {'dtype': 'F32', 'shape': [2], 'data_offsets': [0, 8]}


def load(path):
  return load_weights(path, MODEL, variables=VARIABLES)


def refused(path, told):
  with pytest.raises(WeightsError, match=told) as error:
    load(path)
  assert str(path) in str(error.value)


def packed(header, data=b'', length=None):
  text = header if isinstance(header, bytes) else json.dumps(header).encode()
  return struct.pack('<Q', len(text) if length is None else length) + text + data


SAFETENSORS = {
  'empty': (b'', 'is empty'),
  'seven bytes': (b'\0' * 7, 'is cut short'),
  'no header': (packed(b''), 'is cut short: 8 bytes'),
  'cut in the header': (packed({'a': F32})[:20], 'is cut short'),
  'cut in the numbers': (packed({'a': F32}, b'\0' * 7), 'outside the 7 bytes'),
  'bytes left over': (packed({'a': F32}, b'\0' * 9), 'damaged .safetensors'),
  'giant header': (packed(b'{}', length=2**63), 'is cut short'),
  'no JSON': (packed(b'{"a"'), 'no sound .safetensors'),
  'no UTF-8': (packed(b'{"\xff": 1}'), 'no sound .safetensors'),
  'deep': (packed(b'{"a":' * 50_000), 'no sound .safetensors'),
  'a list': (packed(b'[]'), 'the header is no mapping'),
  'not described': (packed({'a': 3}), "'a' is not described"),
  'twice': (
    packed(b'{"a":%b,"a":%b}' % ((json.dumps(F32).encode(),) * 2), b'\0' * 8),
    "'a' is there twice",
  ),
  'overlap': (packed({'a': F32, 'b': F32}, b'\0' * 8), 'damaged .safetensors'),
  'gap': (packed({'a': F32, 'b': F32 | {'data_offsets': [9, 17]}}, b'\0' * 17), 'damaged'),
  'negative': (packed({'a': F32 | {'data_offsets': [-8, 0]}}, b'\0' * 8), 'has no offsets'),
  'backwards': (packed({'a': F32 | {'data_offsets': [8, 0]}}, b'\0' * 8), 'outside the 8 bytes'),
  'one offset': (packed({'a': F32 | {'data_offsets': [8]}}, b'\0' * 8), 'outside the 8 bytes'),
  'larger than the file': (
    packed({'a': F32 | {'shape': [2**40], 'data_offsets': [0, 2**42]}}, b'\0' * 8),
    'larger than the file',
  ),
  'overflow': (packed({'a': F32 | {'shape': [2**33, 2**33]}}, b'\0' * 8), 'larger than the file'),
  'nothing, enormous': (
    packed({'a': F32 | {'shape': [0, 2**62, 2**62], 'data_offsets': [0, 0]}}),
    'larger than the file',
  ),
  'too many axes': (packed({'a': F32 | {'shape': [1] * 99}}, b'\0' * 8), 'larger than the file'),
  'length of half': (packed({'a': F32 | {'shape': [1.5]}}, b'\0' * 8), 'has no shape'),
  'other length': (packed({'a': F32 | {'shape': [1]}}, b'\0' * 8), 'damaged .safetensors'),
  'float8': (packed({'a': F32 | {'dtype': 'F8_E4M3'}}, b'\0' * 8), "stored as 'F8_E4M3'"),
  'no type': (packed({'a': F32 | {'dtype': ['F32']}}, b'\0' * 8), "stored as .'F32'."),
  'metadata of numbers': (packed({'__metadata__': {'a': 1}}), 'damaged .safetensors'),
}


@pytest.mark.parametrize('case', SAFETENSORS)
def test_safetensors(tmp_path, case):
  content, told = SAFETENSORS[case]
  (tmp_path / 'a.safetensors').write_bytes(content)
  refused(tmp_path / 'a.safetensors', told)


def test_a_header_that_is_there_but_too_long_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(safetensors, 'MAX_HEADER', 100)
  (tmp_path / 'a.safetensors').write_bytes(packed(b'{' + b' ' * 100 + b'}'))
  refused(tmp_path / 'a.safetensors', 'header of 102 bytes, more than 100')


def zipped(**members):
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    for name, content in members.items():
      archive.writestr(name, content)
  return file.getvalue()


@pytest.mark.parametrize('name', ['a.pt', 'a.bin', 'a.pkl', 'a.safetensors', 'a.npz'])
@pytest.mark.parametrize(
  'content',
  [b'\x80\x02}q\0.', b'\x80\x04\x95', b'\x80\x05N.', zipped(**{'m/data.pkl': b'\x80\x02}q\0.'})],
  ids=['protocol 2', 'protocol 4', 'protocol 5', 'zip'],
)
def test_a_pickle_is_refused_whatever_it_is_called(tmp_path, name, content):
  (tmp_path / name).write_bytes(content)
  refused(tmp_path / name, 'is a pickle')


def test_a_header_whose_length_looks_like_a_pickle_is_none(tmp_path):
  text = json.dumps({'__metadata__': {'note': ''}, 'a': F32}).encode()
  text = text.replace(b'"note": ""', b'"note": "%b"' % (b'.' * (0x280 - len(text))))
  content = packed(text, b'\0' * 8)
  assert content[:2] == b'\x80\x02'
  (tmp_path / 'a').write_bytes(content)
  refused(tmp_path / 'a', "left over 'a'")


@pytest.mark.parametrize(
  ('content', 'told'),
  [
    (b'version https://git-lfs.github.com/spec/v1\n', 'pointer of Git LFS'),
    (b'<!DOCTYPE html>', 'web page'),
    (b'\x89HDF\r\n', 'HDF5'),
    (b'\x1f\x8b\x08', 'gzip'),
    (b'\x93NUMPY\x01\0', 'one array'),
    (b'P5 12 12 255', r'neither \.safetensors nor \.npz'),
  ],
)
def test_a_foreign_file_is_called_what_it_is(tmp_path, content, told):
  (tmp_path / 'a.weights').write_bytes(content)
  refused(tmp_path / 'a.weights', told)


def test_paths_that_are_no_file(tmp_path):
  refused(tmp_path / 'none', 'there is no such file')
  refused(tmp_path, 'holds no model.safetensors')
  (tmp_path / 'folder').mkdir()
  (tmp_path / 'model.safetensors').symlink_to(tmp_path / 'folder')
  with pytest.raises(WeightsError, match=r'model\.safetensors: is no file'):
    load(tmp_path)
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  refused(tmp_path / 'loop', 'cannot be read')
  (tmp_path / 'dangling').symlink_to(tmp_path / 'gone')
  refused(tmp_path / 'dangling', 'there is no such file')
  os.mkfifo(tmp_path / 'pipe')
  refused(tmp_path / 'pipe', 'is no file')
  with pytest.raises(WeightsError, match='cannot be read: embedded null'):
    load('a\0b')


# .npz


def array(value, version=None):
  file = io.BytesIO()
  np.lib.format.write_array(file, np.asarray(value), version=version)
  return file.getvalue()


def lie(shape, data=b'\0' * 8):
  """An array whose header says ``shape``."""
  file = io.BytesIO()
  described = {'descr': '<f4', 'fortran_order': False, 'shape': shape}
  np.lib.format.write_array_header_1_0(file, described)
  return file.getvalue() + data


def patched(content, offset, value, *, central=b'PK\x01\x02'):
  """A zip with bytes of its central directory replaced."""
  at = content.index(central) + offset
  return content[:at] + value + content[at + len(value) :]


ONE = array(np.zeros(2, np.float32))
# Arrays that the model has, so that they are read.
NAME = 'norm/bias.npy'
NPZ = {
  'no array': (zipped(**{'a.txt': b''}), "'a.txt' is no array"),
  'upwards': (zipped(**{'a/../../b.npy': ONE}), 'is called as no array is'),
  'absolute': (zipped(**{'/etc/a.npy': ONE}), 'is called as no array is'),
  'a zip in a zip': (zipped(**{'a.zip': zipped(a=b'')}), "'a.zip' is no array"),
  'encrypted': (patched(zipped(**{'more.npy': ONE}), 8, b'\x01\0'), 'is encrypted'),
  'bomb': (patched(zipped(**{NAME: ONE}), 24, b'\xff\xff\xff\x7f'), 'declares 2,147,483,647 bytes'),
  'method': (patched(zipped(**{NAME: ONE}), 10, b'\x0c\0'), 'compressed in a way'),
  'sum': (zipped(**{NAME: ONE}).replace(ONE, ONE[:-1] + b'\1'), 'Bad CRC-32'),
  'cut': (zipped(**{NAME: ONE})[:-30], 'damaged .npz'),
  'zip of nothing': (b'PK\x03\x04', 'damaged .npz'),
  'shape': (zipped(**{NAME: lie((2**40,))}), 'its shape .* is not what is stored'),
  'negative': (zipped(**{NAME: lie((-1, -2))}), "array 'norm/bias'"),
  'no header': (zipped(**{NAME: b'\0' * 99}), 'magic string'),
  'code': (zipped(**{NAME: lie('__import__("os")')}), "array 'norm/bias'"),
}


@pytest.mark.parametrize('case', NPZ)
def test_npz(tmp_path, case):
  content, told = NPZ[case]
  (tmp_path / 'a.npz').write_bytes(content)
  refused(tmp_path / 'a.npz', told)


def test_an_npz_of_objects_is_never_unpickled(tmp_path):
  np.savez(tmp_path / 'a.npz', **{'norm/bias': np.array([print, None], object)})
  refused(tmp_path / 'a.npz', 'holds Python objects, which are never unpickled')


def test_an_npz_with_a_name_twice(tmp_path):
  content = zipped(**{'norm/bias.npy': ONE, 'norm/biaz.npy': ONE})
  (tmp_path / 'a.npz').write_bytes(content.replace(b'biaz', b'bias'))
  refused(tmp_path / 'a.npz', "'norm/bias.npy' is there twice")


def test_zeros_that_are_packed_tightly_are_still_weights(tmp_path):
  # 200 times smaller than its arrays, as a head that starts at zero.
  leaves = {'norm/scale': np.zeros(100_000, np.float32)}
  np.savez_compressed(tmp_path / 'a.npz', **leaves)
  refused(tmp_path / 'a.npz', r"'norm/scale' gives \(100000,\)")


# Fuzz


def mutants(content, rng, count):
  """Copies with bytes flipped, cut, doubled, or numbers of the header changed."""
  digits = [i for i, byte in enumerate(content) if chr(byte).isdigit()]
  for _ in range(count):
    mutant = bytearray(content)
    for _ in range(rng.integers(1, 4)):
      at = int(rng.integers(max(len(mutant), 1)))
      match rng.integers(6):
        case 0:
          mutant[at : at + 1] = bytes([rng.integers(256)])
        case 1:
          mutant[at : at + 1] = bytes(b ^ 1 << int(rng.integers(8)) for b in mutant[at : at + 1])
        case 2:
          del mutant[at : at + int(rng.integers(1, 9))]
        case 3:
          mutant[at:at] = mutant[at : at + int(rng.integers(1, 40))]
        case 4:
          del mutant[at:]
        case 5:
          at = digits[int(rng.integers(len(digits)))]
          mutant[at : at + 1] = str(rng.integers(10)).encode()
    yield bytes(mutant)


def test_ten_thousand_mutants_load_or_are_refused(tmp_path, rng):
  numbers = np.arange(2, dtype=np.float32)
  leaves = {'norm/bias': numbers, 'conv/kernel': numbers.reshape(1, 1, 1, 2)}
  variables = {'params': {'norm': {'bias': numbers}, 'conv': {'kernel': leaves['conv/kernel']}}}
  archive = io.BytesIO()
  np.savez(archive, **{'norm/bias': numbers, 'embedding/kernel': leaves['conv/kernel']})
  loaded = {}
  for name, content, count in (
    ('a.safetensors', save({f'params/{path}': leaf for path, leaf in leaves.items()}), 8000),
    ('b.npz', archive.getvalue(), 2000),
  ):
    loaded[name] = 0
    # One file all the time: making it anew, or empty, is most of the cost.
    with (tmp_path / name).open('wb') as file:
      for mutant in mutants(content, rng, count):
        file.seek(0)
        file.write(mutant)
        file.truncate()
        file.flush()
        try:
          load_weights(file.name, SmallNames(), variables=variables)
          loaded[name] += 1
        except WeightsError as error:
          assert name in str(error)  # noqa: PT017
  # Another number is no damage that safetensors can tell; a zip has sums of them.
  assert 100 < loaded['a.safetensors'] < 2000
  assert 10 < loaded['b.npz'] < 1000


class SmallNames:
  """Stands for a module with a convolution and a norm."""

  def names(self, style):
    del style
    return small.Small.big_vision_names
