"""What goes wrong with data, in words for the person who gave the data."""


class DataError(ValueError):
  """A dataset cannot be read or holds something it must not: the message names the place."""
