"""Telling a person how far a run is."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
  """A progress bar on a terminal, one plain line for each report otherwise; a context manager."""

  def __init__(self, steps: int, *, start: int = 0):
    self._steps = steps
    self._start = start
    self._begun = time.perf_counter()
    self._bar = None
    if sys.stdout.isatty():
      self._bar = Progress(
        TextColumn('step'),
        MofNCompleteColumn(),
        BarColumn(),
        TextColumn('{task.fields[text]}'),
        TimeRemainingColumn(),
        console=Console(),
      )
      self._task = self._bar.add_task('', total=steps, completed=start, text='compiling')

  def __enter__(self) -> 'Reporter':
    if self._bar is not None:
      self._bar.start()
    return self

  def __exit__(self, *_) -> None:
    if self._bar is not None:
      self._bar.stop()

  def train(self, step: int, metrics: dict[str, float]) -> None:
    """Reports the means since the last report."""
    text = f'loss {metrics["loss"]:.4f}  accuracy {metrics["accuracy"]:.4f}'
    if 'images_per_second' in metrics:
      text += f'  {metrics["images_per_second"]:.0f} images/s'
    if metrics['skipped']:
      text += f'  {metrics["skipped"]} skipped'
    if self._bar is not None:
      self._bar.update(self._task, completed=step, text=text)
      return
    done = max(step - self._start, 1)
    left = (time.perf_counter() - self._begun) / done * (self._steps - step)
    print(f'step {step}/{self._steps}  {text}  {left:.0f} s left', flush=True)

  def say(self, text: str) -> None:
    """Prints a line, above the bar if there is one."""
    if self._bar is not None:
      self._bar.console.print(text, highlight=False, markup=False)
    else:
      print(text, flush=True)
