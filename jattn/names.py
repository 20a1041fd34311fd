"""Names become objects by plain dictionaries; a name that is not there gets the nearest ones."""

import difflib
from collections.abc import Mapping
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
