"""A score over images in five numbers, and the numbers in words."""

from typing import NamedTuple

import jax
import numpy as np

from jattn.explain.score import Score, bootstrap_interval


class Summary(NamedTuple):
  """A score over images; where no image is valid all but the count is NaN.

  Attributes:
    mean: over the valid images.
    low: lower end of the 95% bootstrap interval.
    high: upper end.
    chance: mean over the valid images.
    count: how many images are valid.
    higher_is_better: the direction.
  """

  mean: float
  low: float
  high: float
  chance: float
  count: int
  higher_is_better: bool


def summarise(key: jax.Array, score: Score) -> Summary:
  """Mean, interval and chance of a score over its valid images.

  Args:
    key: of the draws of the bootstrap.
    score: of [B] images.
  """
  valid = np.asarray(score.valid, bool)
  if not valid.any():
    return Summary(*[float('nan')] * 4, 0, score.higher_is_better)
  interval = bootstrap_interval(key, score.value, valid)
  chance = float(np.asarray(score.chance, np.float64)[valid].mean())
  return Summary(*interval[:3], chance, interval.count, score.higher_is_better)


def number(value: float) -> str:
  """Three figures.

  >>> number(0.123456), number(1234.5), number(2.0)
  ('0.123', '1230', '2')
  """
  return f'{float(f"{value:.3g}"):.6g}'


def direction(higher_is_better: bool) -> str:
  return 'higher is better' if higher_is_better else 'lower is better'


def in_words(score: Score, index: int) -> str:
  """One image's value: ``0.7, chance 0.2, higher is better``."""
  if not bool(score.valid[index]):
    return 'not defined for this image'
  value, chance = number(float(score.value[index])), number(float(score.chance[index]))
  return f'{value}, chance {chance}, {direction(score.higher_is_better)}'
