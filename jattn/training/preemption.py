"""Leaving when asked to, with everything saved."""

import signal


class Preemption:
  """While entered, SIGTERM and SIGINT only set ``requested``; a second SIGINT interrupts at once.

  Use as a context manager in the main thread and give ``should_stop`` to ``fit``. With several
  processes every one must be sent the signal before any stops.

  Attributes:
    requested: the name of the signal that came, or None.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.requested: str | None = None
    self._previous = {}

  def __enter__(self) -> 'Preemption':
    self._previous = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def should_stop(self) -> bool:
    return self.requested is not None

  def _handle(self, number: int, _) -> None:
    if number == signal.SIGINT and self.requested is not None:
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
