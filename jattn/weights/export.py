"""A model with its weights as one program that runs without the code that made it (jax.export)."""

import dataclasses
import hashlib
import json
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from jattn.types import AttentionMap, Prediction
from jattn.weights.contents import opened, regular
from jattn.weights.errors import WeightsError
from jattn.weights.writing import replacing

# After the program come: facts (JSON), sha256 of all before, length of the facts, this mark. What
# reads programs of jax.export stops at their end, so the file is one of those too.
_MARK = b'jattn.export.1\0\0'
_TAIL = struct.Struct(f'<32sI{len(_MARK)}s')
_BATCHES = (1, 3)


@dataclasses.dataclass(frozen=True, eq=False)
class Exported:
  """A program out of a file: called with images it gives a ``Prediction``.

  Attributes:
    image_size: (H, W) of the images that it takes.
    channels: of the images.
    num_classes: L.
    platforms: where it runs: 'cpu', 'cuda', 'rocm', 'tpu'.
    jax_version: of the jax that wrote it.
  """

  image_size: tuple[int, int]
  channels: int
  num_classes: int
  platforms: tuple[str, ...]
  jax_version: str
  _call: Callable = dataclasses.field(repr=False)
  _maps: Mapping[str, Mapping] = dataclasses.field(repr=False)

  def __call__(self, images: jax.Array) -> Prediction:
    """[B, H, W, C] float32, any B -> logits [B, L] and the maps that were exported.

    Raises:
      ValueError: the images have another size or type, or it was not exported for this platform.
    """
    size = (*self.image_size, self.channels)
    if images.ndim != 4 or images.shape[1:] != size or images.dtype != jnp.float32:
      wanted = f'float32 [B, {", ".join(map(str, size))}]'
      raise ValueError(f'images must be {wanted}, got {images.dtype} {list(images.shape)}')
    if not _here(self.platforms):
      raise ValueError(f'{self.platforms=} must hold {jax.default_backend()!r} to run here')
    returned = self._call(images)
    maps = {
      path: AttentionMap(
        returned['maps'][path], facts['kind'], tuple(facts['grid']), returned['keys'].get(path)
      )
      for path, facts in self._maps.items()
    }
    return Prediction(returned['logits'], maps)


def export_model(
  path: str | os.PathLike[str],
  model: nn.Module,
  variables: Mapping,
  *,
  image_size: int | tuple[int, int],
  platforms: Sequence[str] = ('cpu', 'cuda', 'tpu'),
  maps: bool = False,
  overwrite: bool = False,
) -> Path:
  """Writes the model in evaluation, weights and all, as one file for any number of images.

  The file is what ``jax.export`` serializes, a few facts and a checksum. Without jattn,
  ``jax.export.deserialize(bytearray(open(path, 'rb').read())).call(images)`` runs it and gives
  ``{'logits': [B, L], 'maps': {path: weights}, 'keys': {path: keys}}``. Before it takes its place
  it is read back and its logits and maps are held against the model's, for one image and three.

  Args:
    path: the file.
    model: a ``Classifier``.
    variables: its variables.
    image_size: side or (H, W) of the images, in pixels; the batch is free.
    platforms: what it is compiled for; this machine's must be among them.
    maps: whether it gives the attention maps too.
    overwrite: whether a file of this name may be replaced.

  Returns:
    The file.

  Raises:
    WeightsError: the file is there and ``overwrite`` is not set, it cannot be written, or what was
      read back does not give the model's numbers.
    ValueError: this machine's platform is not among ``platforms``, or the model does not take such
      images.
  """
  if not _here(platforms):
    here = jax.default_backend()
    raise ValueError(f'{platforms=} must hold this machine, {here!r}: the file is tried on it')
  size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
  shape = (*size, model.channels)

  def program(images: jax.Array) -> dict[str, Any]:
    prediction = model.apply(variables, images, train=False)
    kept = prediction.maps if maps else {}
    keys = {path: looked.keys for path, looked in kept.items() if looked.keys is not None}
    weights = {path: looked.weights for path, looked in kept.items()}
    return {'logits': prediction.logits, 'maps': weights, 'keys': keys}

  file = Path(path).expanduser()
  with replacing([file], overwrite=overwrite) as (draft,):
    (batch,) = export.symbolic_shape('batch')
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    exported = export.export(jax.jit(program), platforms=tuple(platforms))(images)
    facts = _facts(model, variables, images, maps) | {
      'image_size': size,
      'channels': model.channels,
      'platforms': tuple(platforms),
    }
    draft.write_bytes(_packed(exported.serialize(), facts))
    _check(load_exported(draft), program, shape, file, _tolerance(model))
  return file


def load_exported(path: str | os.PathLike[str]) -> Exported:
  """The program that ``export_model`` wrote.

  Nothing of the file is interpreted before its checksum is verified. That tells damage, not
  intent: run only programs of people you trust.

  Raises:
    WeightsError: the file is missing, foreign or damaged, or this jax cannot read its program.
  """
  file = regular(path)
  with opened(file) as (stream, size):
    if size < _TAIL.size:
      raise WeightsError(f'{file}: is no model exported by jattn')
    stream.seek(size - _TAIL.size)
    digest, length, mark = _TAIL.unpack(stream.read(_TAIL.size))
    if mark != _MARK:
      raise WeightsError(f'{file}: is no model exported by jattn, or is cut short')
    if length > size - _TAIL.size:
      raise WeightsError(f'{file}: is damaged: its facts are longer than the file')
    stream.seek(0)
    content = bytearray(stream.read(size - _TAIL.size))
  if hashlib.sha256(content).digest() != digest:
    raise WeightsError(f'{file}: is damaged: its content is not what was written')
  try:
    facts = json.loads(content[len(content) - length :])
    call = jax.jit(export.deserialize(content).call)
    return Exported(
      image_size=tuple(facts['image_size']),
      channels=facts['channels'],
      num_classes=facts['num_classes'],
      platforms=tuple(facts['platforms']),
      jax_version=facts['jax_version'],
      _call=call,
      _maps=facts['maps'],
    )
  except Exception as error:
    # What a reader of another version raises is not said anywhere.
    raise WeightsError(
      f'{file}: cannot be read by jax {jax.__version__}: {type(error).__name__}: {error}'
    ) from error


def _packed(program: bytes, facts: Mapping[str, Any]) -> bytes:
  told = json.dumps(facts).encode()
  content = bytes(program) + told
  return content + _TAIL.pack(hashlib.sha256(content).digest(), len(told), _MARK)


def _facts(
  model: nn.Module, variables: Mapping, images: jax.ShapeDtypeStruct, maps: bool
) -> dict[str, Any]:
  one = jax.ShapeDtypeStruct((1, *images.shape[1:]), images.dtype)
  shapes = jax.eval_shape(lambda x: model.apply(variables, x, train=False), one)
  looked = shapes.maps if maps else {}
  return {
    'num_classes': shapes.logits.shape[-1],
    'maps': {path: {'kind': m.kind, 'grid': m.grid} for path, m in looked.items()},
    'jax_version': jax.__version__,
  }


def _check(
  read: Exported, program: Callable, shape: tuple[int, ...], file: Path, tolerance: float
) -> None:
  """Holds what was read back against the model, for a batch of three and for its first image."""
  images = jax.random.normal(jax.random.key(0), (max(_BATCHES), *shape))
  wanted = jax.jit(program)(images)
  for batch in _BATCHES:
    got = read(images[:batch])
    pairs = [('logits', got.logits, wanted['logits'])]
    pairs += [(path, looked.weights, wanted['maps'][path]) for path, looked in got.maps.items()]
    for name, ours, theirs in pairs:
      theirs = np.asarray(theirs)[:batch] if len(theirs) == max(_BATCHES) else np.asarray(theirs)
      largest = max(1.0, float(np.abs(theirs).max(initial=0)))
      if not np.allclose(ours, theirs, rtol=0, atol=tolerance * largest, equal_nan=True):
        apart = float(np.abs(np.asarray(ours) - theirs).max())
        raise WeightsError(f'{file}: {name} of {batch} images differ by {apart:.2g} from the model')


def _tolerance(model: nn.Module) -> float:
  """Room for what one compiler does in another order, by the type that is computed in."""
  dtype = getattr(getattr(model, 'backbone', None), 'dtype', None) or jnp.float32
  return min(0.1, 1000 * float(jnp.finfo(dtype).eps))


def _here(platforms: Sequence[str]) -> bool:
  here = jax.default_backend()
  return bool({'cuda', 'rocm'} & set(platforms)) if here == 'gpu' else here in platforms
