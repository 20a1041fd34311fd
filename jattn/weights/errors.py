"""What goes wrong with a file of weights, in words for the person who gave the file."""


class WeightsError(ValueError):
  """Weights cannot be read, do not fit or cannot be written: the message names the file."""
