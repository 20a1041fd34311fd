"""What a page shows, checked and put in one form."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jattn.explain.report.colours import as_bytes, multiples
from jattn.explain.score import Score


@dataclasses.dataclass(frozen=True)
class Contents:
  """N images and their maps, as ``write_report`` takes them; see there.

  Attributes:
    shares: each column's maps as multiples of an even spread, [N, H, W].
    faults: for each column and image what is wrong with the map, or ''.
  """

  images: np.ndarray
  shares: Mapping[str, np.ndarray]
  faults: Mapping[str, Sequence[str]]
  scores: Mapping[str, Mapping[str, Score]]
  descriptions: Mapping[str, str]
  captions: Sequence[str] | None
  labels: Sequence[int] | None
  predicted: Sequence[int] | None
  probabilities: Sequence[float] | None
  class_names: Sequence[str] | None
  masks: np.ndarray | None
  boxes: np.ndarray | None
  heads: Mapping[str, np.ndarray]

  @property
  def columns(self) -> list[str]:
    return list(self.shares)

  @property
  def score_names(self) -> list[str]:
    """Every score of any column, in the order in which they appear."""
    return list(dict.fromkeys(name for scores in self.scores.values() for name in scores))

  @property
  def right(self) -> list[bool] | None:
    """Whether each prediction is right, or None where nobody knows."""
    if self.labels is None or self.predicted is None:
      return None
    return [a == b for a, b in zip(self.labels, self.predicted, strict=True)]

  def class_name(self, index: int) -> str:
    return str(index if self.class_names is None else self.class_names[index])


def contents(
  images: np.ndarray,
  maps: Mapping[str, np.ndarray],
  *,
  scores: Mapping[str, Mapping[str, Score]],
  heads: Mapping[str, np.ndarray],
  descriptions: Mapping[str, str],
  **of_images: Any,
) -> Contents:
  """Checks what ``write_report`` was given.

  Raises:
    ValueError: naming what has another shape, or names a column that does not exist.
  """
  images = as_bytes(images)
  count, size = len(images), images.shape[:3]
  maps = {str(name): np.asarray(value) for name, value in maps.items()}
  for name, value in maps.items():
    if value.shape != size:
      raise ValueError(f'maps[{name!r}] {value.shape} must have the shape of the images {size}')
  for argument, named in (('scores', scores), ('descriptions', descriptions)):
    for name in named:
      if name not in maps:
        raise ValueError(f'{argument} names {name!r}, which is no column; there are {list(maps)}')
  for name, value in of_images.items():
    if value is not None and name != 'class_names' and len(value) != count:
      raise ValueError(f'{name} has {len(value)} entries for {count} images')
  masks, boxes = of_images['masks'], of_images['boxes']
  if masks is not None and np.shape(masks) != size:
    raise ValueError(f'masks {np.shape(masks)} must have the shape of the images {size}')
  if boxes is not None and (np.ndim(boxes) != 3 or np.shape(boxes)[2] != 4):
    raise ValueError(f'boxes {np.shape(boxes)} must be [{count}, K, 4]: top, left, bottom, right')
  heads = {path: np.asarray(value, np.float32) for path, value in heads.items()}
  for path, value in heads.items():
    if value.ndim != 4 or len(value) != count:
      raise ValueError(f'heads[{path!r}] {value.shape} must be [{count}, M, h, w]')
  for name, kind in (('labels', int), ('predicted', int), ('probabilities', float)):
    if of_images[name] is not None:
      of_images[name] = [kind(value) for value in of_images[name]]
  for name in ('masks', 'boxes'):
    if of_images[name] is not None:
      of_images[name] = np.asarray(of_images[name])
  _check_classes(of_images)
  return Contents(
    images=images,
    shares={name: multiples(value) for name, value in maps.items()},
    faults={name: [_fault(a) for a in value] for name, value in maps.items()},
    scores={name: _checked(name, scores.get(name, {}), count) for name in maps},
    descriptions=descriptions,
    heads=heads,
    **of_images,
  )


def _checked(column: str, scores: Mapping[str, Score], count: int) -> dict[str, Score]:
  for name, score in scores.items():
    if np.shape(score.value) != (count,):
      raise ValueError(
        f'scores[{column!r}][{name!r}] {np.shape(score.value)} must be [{count}], one an image'
      )
  return {name: jax.tree.map(np.asarray, score) for name, score in scores.items()}


def _check_classes(of_images: Mapping[str, Any]) -> None:
  names = of_images['class_names']
  for argument in ('labels', 'predicted'):
    for index in () if names is None or of_images[argument] is None else of_images[argument]:
      if not 0 <= index < len(names):
        raise ValueError(f'{argument} has class {index}, and there are {len(names)} class_names')


def _fault(one: np.ndarray) -> str:
  if not np.isfinite(one).all():
    return 'not finite: nothing to see'
  if one.max() == one.min():
    return 'constant: it says nothing'
  return ''
