"""Leaving when asked to, with everything saved."""

import itertools
import signal

import jax
from jax.experimental import multihost_utils

# JAX counts the calls at which processes agree to stop through the life of a process.
_calls = itertools.count(1)


class Preemption:
  """While entered, SIGTERM and SIGINT only set ``requested``; a second SIGINT interrupts at once.

  Use as a context manager in the main thread and give ``should_stop`` to ``fit``. With several
  processes it is enough that one is sent the signal: all stop after the same step, which JAX's
  preemption service chooses a second or two later. All must call ``should_stop`` equally often.

  Attributes:
    requested: the name of the signal that came, or None.
  """

  SIGNALS = (signal.SIGTERM, signal.SIGINT)

  def __init__(self):
    self.requested: str | None = None
    self._previous = {}

  def __enter__(self) -> 'Preemption':
    # With several processes SIGTERM is JAX's to notice, who tells the others.
    numbers = self.SIGNALS if jax.process_count() == 1 else (signal.SIGINT,)
    self._previous = {number: signal.signal(number, self._handle) for number in numbers}
    return self

  def __exit__(self, *_) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, handler)

  def should_stop(self) -> bool:
    if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(next(_calls)):
      self.requested = self.requested or 'SIGTERM'
      return True
    return self.requested is not None and jax.process_count() == 1

  def _handle(self, number: int, _) -> None:
    if number == signal.SIGINT and self.requested is not None:
      raise KeyboardInterrupt
    self.requested = signal.Signals(number).name
    if jax.process_count() > 1:
      signal.raise_signal(signal.SIGTERM)
