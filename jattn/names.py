"""Names become objects by plain dictionaries; a name that is not there gets the nearest ones."""

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import TypeVar

T = TypeVar('T')


def look_up(name: str, table: Mapping[str, T], *, noun: str) -> T:
  """Returns ``table[name]``.

  Args:
    name: what the user asked for.
    table: the names that exist.
    noun: what the table holds, for the message ("model", "attention").

  Raises:
    ValueError: the name is not in the table; the message suggests the nearest ones.

  >>> look_up('avrage', {'average': 1, 'max': 2}, noun='pooling')
  Traceback (most recent call last):
  ValueError: no pooling is called 'avrage'; did you mean 'average'?
  """
  if name in table:
    return table[name]
  near = difflib.get_close_matches(str(name), table, n=3, cutoff=0.5)
  hint = 'did you mean ' + ' or '.join(map(repr, near)) if near else f'there are {sorted(table)}'
  raise ValueError(f'no {noun} is called {name!r}; {hint}' + ('?' if near else ''))


def build(name: str, table: Mapping[str, Callable[..., T]], *, noun: str, settings: Mapping) -> T:
  """Returns ``table[name](**settings)``.

  Raises:
    ValueError: the name is not in the table, or what it names takes no such setting; the message
      names the nearest ones.

  >>> build('point', {'point': lambda x=0, y=0: (x, y)}, noun='shape', settings={'z': 1})
  Traceback (most recent call last):
  ValueError: shape 'point' takes no setting 'z'; there are ['x', 'y']
  """
  make = look_up(name, table, noun=noun)
  takes = [key for key in inspect.signature(make).parameters if key not in ('parent', 'name')]
  for key in settings:
    if key not in takes:
      near = difflib.get_close_matches(key, takes, n=1, cutoff=0.6)
      hint = f'did you mean {near[0]!r}?' if near else f'there are {takes}'
      raise ValueError(f'{noun} {name!r} takes no setting {key!r}; {hint}')
  return make(**settings)
