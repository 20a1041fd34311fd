"""How scenes are made: for each kind its settings, its pictures, and one scene out of a key.

A recipe is a frozen dataclass whose fields are the settings of the name. `patterns` gives the
pictures besides the digits; `draw` one scene, unbatched, out of a key and the sprites of a split.
"""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jattn.data.scenes import patterns
from jattn.data.scenes.canvas import Layer, Scene
from jattn.data.scenes.draws import apart, below, rounded, words
from jattn.data.scenes.patterns import FRAME, SPRITE
from jattn.data.scenes.sprites import Sprites

NOISE_PATTERNS = 50
_DIGITS, _SAME = 5, 3
_MOST = 1 << 20  # pixels and pieces: all numbers stay far below 2^31


class Recipe(Protocol):
  """One kind of scene.

  Attributes:
    size: S, the side of the canvas in pixels.
    counts: how many scenes a split has if the user does not say.
  """

  size: int
  counts: ClassVar[Mapping[str, int]]

  def patterns(self, *, num_classes: int, entropy: tuple[int, ...]) -> dict[str, np.ndarray]: ...

  def draw(self, key: jax.Array, sprites: Sprites, *, test: jax.Array) -> Scene: ...


@dataclasses.dataclass(frozen=True)
class Cluttered:
  """One digit among pieces of digits: cluttered translated MNIST (arXiv 1406.6247, 2014).

  First `clutter` pieces of 8 x 8 pixels, each cut at random out of a digit of the same split (of
  any class, and often black), then the digit; every corner is uniform over where the piece fits.
  All are added and clipped at 255, so clutter may lie under the digit. The authors' generator
  (google-deepmind/mnist-cluttered) takes the digits in the order of a permutation; here each is
  drawn, so that a scene depends on its index alone.

  Object: the digit, 784 / S^2 of the canvas (21.8% at 60, 7.84% at 100). Distractors: the clutter.

  Attributes:
    size: S >= 28 pixels; 60 and 100 in the paper.
    clutter: pieces, >= 0; 4 in the paper, 8 in some later use of 100 x 100.
  """

  counts: ClassVar = {'train': 20_000, 'choose': 2_000, 'test': 10_000}
  piece: ClassVar = 8
  size: int = 60
  clutter: int = 4

  def __post_init__(self):
    _within('size', self.size, SPRITE)
    _within('clutter', self.clutter, 0)

  def patterns(self, *, num_classes: int, entropy: tuple[int, ...]) -> dict[str, np.ndarray]:
    del num_classes, entropy
    return {}

  def draw(self, key: jax.Array, sprites: Sprites, *, test: jax.Array) -> Scene:
    del test
    drawn = words(key, 3 + 5 * self.clutter)
    row, corner = sprites.any(drawn[:1]), below(drawn[None, 1:3], self.size - SPRITE + 1)
    pieces = drawn[3:].reshape(self.clutter, 5)
    clutter = Layer(
      rows=sprites.any(pieces[:, 0]),
      offsets=below(pieces[:, 1:3], SPRITE - self.piece + 1),
      corners=below(pieces[:, 3:5], self.size - self.piece + 1),
      table='sprites',
      side=self.piece,
      role='distractor',
      covers=False,
    )
    return Scene(
      label=sprites.labels[row[0]],
      layers=(clutter, _whole(row, corner, role='object')),
      size=self.size,
    )


@dataclasses.dataclass(frozen=True)
class Megapixel:
  """Five digits, three of one class, among line noise: megapixel MNIST (arXiv 1905.03711).

  The label is a class drawn evenly; three digits are of it and two of others (all with
  replacement), at corners round(u (S - 28)) that do not overlap; `noise` of 50 patterns of the
  split lie at corners uniform in 28..S-29. Pieces replace what lies below. In the paper (and its
  code, idiap/attention-sampling) the noise comes last and erases parts of digits: 7.25% of those
  at 1500 x 1500 are touched, `order='over'`. In that of iterative patch selection (Bergner et al.
  2023, arXiv 2210.13007) the digits come last: `order='under'`, where every digit is whole.

  Objects: the three digits, 3 * 784 / S^2 of the canvas (0.1045% at 1500). Distractors: the other
  two digits, then the noise.

  Attributes:
    size: S >= 160 pixels, so that five digits always find room.
    noise: patterns on a canvas, >= 0; None: round(50 (S / 1500)^2), as dense as in the paper.
    order: 'under' or 'over', where the noise lies.
  """

  counts: ClassVar = {'train': 5_000, 'choose': 500, 'test': 1_000}
  size: int = 1500
  noise: int | None = None
  order: str = 'under'

  def __post_init__(self):
    _within('size', self.size, 160)
    if self.noise is None:
      object.__setattr__(self, 'noise', round(50 * (self.size / 1500) ** 2))
    _within('noise', self.noise, 0)
    if self.order not in ('under', 'over'):
      raise ValueError(f"order={self.order!r} must be 'under' or 'over'")

  def patterns(self, *, num_classes: int, entropy: tuple[int, ...]) -> dict[str, np.ndarray]:
    _two_classes(num_classes)
    return {'noise': patterns.line_noise(NOISE_PATTERNS, entropy)}

  def draw(self, key: jax.Array, sprites: Sprites, *, test: jax.Array) -> Scene:
    del test
    drawn = words(key, 1 + _DIGITS + 3 * self.noise)
    label = below(drawn[0], sprites.num_classes)
    same = sprites.of(label, drawn[1 : 1 + _SAME])
    others = sprites.not_of(label, drawn[1 + _SAME : 1 + _DIGITS])
    corners = apart(
      key,
      _DIGITS,
      side=SPRITE,
      corner=lambda word: rounded(word, self.size - SPRITE),
      restart=False,
    )
    lines = drawn[1 + _DIGITS :].reshape(self.noise, 3)
    noise = Layer(
      rows=below(lines[:, 0], NOISE_PATTERNS),
      offsets=jnp.zeros((self.noise, 2), jnp.int32),
      corners=SPRITE + below(lines[:, 1:], self.size - 2 * SPRITE),
      table='noise',
      side=SPRITE,
      role='distractor',
      covers=True,
    )
    digits = (
      _whole(same, corners[:_SAME], role='object', covers=True),
      _whole(others, corners[_SAME:], role='distractor', covers=True),
    )
    layers = (noise, *digits) if self.order == 'under' else (*digits, noise)
    return Scene(label=label, layers=layers, size=self.size)


@dataclasses.dataclass(frozen=True)
class Paired:
  """Two digits of different classes; the label is the one in a frame.

  The two classes are drawn evenly and so is the place of the two 32 x 32 cells that the digits are
  centred in, without overlap; a grey ring of one pixel around one cell is all that tells them
  apart. So whoever sees both digits and not the frame is right half of the time.

  Object: the framed digit, 784 / S^2 of the canvas. Distractor: the other digit. The frame is
  neither.

  Attributes:
    size: S >= 72 pixels, so that two cells soon find room.
  """

  counts: ClassVar = {'train': 20_000, 'choose': 2_000, 'test': 10_000}
  size: int = 100

  def __post_init__(self):
    _within('size', self.size, 72)

  def patterns(self, *, num_classes: int, entropy: tuple[int, ...]) -> dict[str, np.ndarray]:
    del entropy
    _two_classes(num_classes)
    return {'frame': patterns.frame()}

  def draw(self, key: jax.Array, sprites: Sprites, *, test: jax.Array) -> Scene:
    del test
    drawn = words(key, 4)
    label = below(drawn[0], sprites.num_classes)
    other = below(drawn[1], sprites.num_classes - 1)
    other = jnp.where(other >= label, other + 1, other)
    cells = apart(
      key,
      2,
      side=FRAME,
      corner=lambda word: below(word, self.size - FRAME + 1),
      restart=True,
    )
    frame = Layer(
      rows=jnp.zeros(1, jnp.int32),
      offsets=jnp.zeros((1, 2), jnp.int32),
      corners=cells[:1],
      table='frame',
      side=FRAME,
      role='marker',
      covers=False,
    )
    corners = cells + (FRAME - SPRITE) // 2
    framed = _whole(sprites.of(label, drawn[2])[None], corners[:1], role='object')
    plain = _whole(sprites.of(other, drawn[3])[None], corners[1:], role='distractor')
    return Scene(label=label, layers=(frame, framed, plain), size=self.size)


@dataclasses.dataclass(frozen=True)
class Shortcut:
  """One digit, and a cue in the top left corner that tells its class in training.

  In 'train' and 'choose' the cue is that of the digit's class with probability `agreement` / 100
  and otherwise one of any class; in 'test' it is always one of any class, drawn apart from the
  digit. The digit lies below and to the right of the cue, uniformly. As `choose` has the cue too,
  nothing but the test split tells a model that reads the cue from one that reads the digit.

  Object: the digit, 784 / S^2 of the canvas. Distractor: the cue.

  Attributes:
    size: S >= 28 + the side of the cue (8 for ten classes), in pixels.
    agreement: per cent, in 0..100.
  """

  counts: ClassVar = {'train': 20_000, 'choose': 2_000, 'test': 10_000}
  size: int = 60
  agreement: int = 100

  def __post_init__(self):
    _within('size', self.size, SPRITE)
    if not 0 <= self.agreement <= 100:
      raise ValueError(f'agreement={self.agreement} must be in 0..100')

  def patterns(self, *, num_classes: int, entropy: tuple[int, ...]) -> dict[str, np.ndarray]:
    del entropy
    plates = patterns.cues(num_classes)
    _within('size', self.size, SPRITE + plates.shape[1])
    return {'cues': plates}

  def draw(self, key: jax.Array, sprites: Sprites, *, test: jax.Array) -> Scene:
    drawn = words(key, 6)
    label = below(drawn[0], sprites.num_classes)
    cue = below(drawn[1], sprites.num_classes)
    told = (below(drawn[2], 100) < self.agreement) & ~test
    cue = jnp.where(told, label, cue)
    side = patterns.cues(sprites.num_classes).shape[1]
    plate = Layer(
      rows=cue[None],
      offsets=jnp.zeros((1, 2), jnp.int32),
      corners=jnp.zeros((1, 2), jnp.int32),
      table='cues',
      side=side,
      role='distractor',
      covers=True,
    )
    corner = side + below(drawn[None, 3:5], self.size - SPRITE - side + 1)
    digit = _whole(sprites.of(label, drawn[5])[None], corner, role='object')
    return Scene(label=label, layers=(plate, digit), size=self.size)


RECIPES: dict[str, type[Recipe]] = {
  'cluttered': Cluttered,
  'megapixel': Megapixel,
  'paired': Paired,
  'shortcut': Shortcut,
}


def _whole(rows: jax.Array, corners: jax.Array, *, role: str, covers: bool = False) -> Layer:
  """Digits [n] that are shown whole at corners [n, 2]."""
  return Layer(
    rows=rows,
    offsets=jnp.zeros_like(corners),
    corners=corners,
    table='sprites',
    side=SPRITE,
    role=role,
    covers=covers,
  )


def _two_classes(num_classes: int) -> None:
  if num_classes < 2:
    raise ValueError(f'{num_classes=} of the sprites must be at least 2')


def _within(name: str, value: int, least: int) -> None:
  if not least <= value <= _MOST:
    raise ValueError(f'{name}={value} must be in {least}..{_MOST}')
