"""One array out of an ``.npz`` archive, checked before anything is allocated; never unpickled."""

import math
import zipfile

import numpy as np


def read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
  """The array that a member of the archive holds.

  The shape in its header is compared with the length of the member first.

  Raises:
    ValueError: it holds Python objects, or it is damaged; the message does not say which member:
      the caller knows.
  """
  try:
    with archive.open(info) as stream:
      version = np.lib.format.read_magic(stream)
      headers = {(1, 0): np.lib.format.read_array_header_1_0}
      read_header = headers.get(version, np.lib.format.read_array_header_2_0)
      shape, _, dtype = read_header(stream)
      length = info.file_size - stream.tell()
    if dtype.hasobject:
      raise _Refused('holds Python objects, which are never unpickled')
    if math.prod(shape) * dtype.itemsize != length:
      raise _Refused(f'is damaged: its shape {shape} is not what is stored')
    with archive.open(info) as stream:
      return np.lib.format.read_array(stream, allow_pickle=False)
  except _Refused as error:
    raise ValueError(str(error)) from None
  except Exception as error:
    # zlib.error, EOFError, SyntaxError of the header, ...: all of them are damage.
    raise ValueError(f'is damaged: {type(error).__name__}: {error}') from error


class _Refused(Exception):
  """What this module itself finds wrong."""
