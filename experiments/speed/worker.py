"""A framework in a process of its own that takes its turn when it is asked.

Two frameworks share one GPU: in one process each would take what memory it can. So each has a
process that compiles its steps, and the one that asks lets them take turns. A request is a line of
JSON on the child's standard input, the answer is one on its standard output.

  {"do": "describe"}                                        -> facts of the machine
  {"do": "prepare", "steps": {NAME: {"part": P, ...}, ..}}  -> {NAME: null, or why it cannot run}
  {"do": "turn", "name": NAME}                              -> seconds a step
  {"do": "measure", "part": P, ...}                         -> what the part found
"""

import importlib
import json
import math
import os
import pathlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TextIO

from experiments.errors import ExperimentError, RunError

ROOT = pathlib.Path(__file__).parents[2]
FRAMEWORKS = {'jattn': 'experiments.speed.gpu_jattn', 'torch': 'experiments.speed.gpu_torch'}
# A turn repeats its step for so many seconds: a device works behind the program that feeds it.
TURN = 0.02


class Framework(Protocol):
  """What the class ``Runner`` of a module of ``FRAMEWORKS`` has."""

  def describe(self) -> dict[str, Any]:
    """Device and versions, as JSON values."""

  def prepare(self, steps: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """For each its step, or the exception; a step starts work, ``wait`` waits for it."""

  def wait(self) -> None:
    """Returns when the device has done all that was asked."""

  def measure(self, part: str, **settings: Any) -> dict[str, Any]:
    """Anything that needs no other to take turns with."""


def serve(framework: Framework, requests: TextIO, answers: TextIO, turn: float = TURN) -> None:
  """Answers until there are no more requests."""
  steps: dict[str, tuple[Callable[[], Any], int]] = {}

  def prepare(steps_wanted: Mapping[str, Any]) -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name, step in framework.prepare(steps_wanted).items():
      try:
        if isinstance(step, Exception):
          raise step
        steps[name] = step, _repeats(framework, step, turn)
        found[name] = None
      except Exception as error:  # out of memory, no such kernel: the next may run
        found[name] = reason(error)
    return found

  def take(name: str) -> float:
    step, repeats = steps[name]
    begun = time.perf_counter()
    for _ in range(repeats):
      step()
    framework.wait()
    return (time.perf_counter() - begun) / repeats

  for line in requests:
    request = json.loads(line)
    kind = request.pop('do')
    try:
      if kind == 'prepare':
        answer = prepare(request['steps'])
      elif kind == 'turn':
        answer = take(request['name'])
      elif kind == 'measure':
        answer = framework.measure(request.pop('part'), **request)
      else:
        answer = framework.describe()
      reply = {'answer': answer}
    except Exception as error:
      reply = {'error': reason(error)}
    answers.write(json.dumps(reply) + '\n')
    answers.flush()


def _repeats(framework: Framework, step: Callable[[], Any], turn: float) -> int:
  """How often the step is repeated in a turn."""
  for _ in range(3):  # compiling, then choosing kernels, then recording them
    step()
  framework.wait()
  begun = time.perf_counter()
  step()
  framework.wait()
  return max(1, math.ceil(turn / max(time.perf_counter() - begun, 1e-6)))


def reason(error: BaseException) -> str:
  """What went wrong, in a line."""
  first = str(error).strip().partition('\n')[0]
  return f'{type(error).__name__}: {first[:150]}' if first else type(error).__name__


class Worker:
  """The child's other end; requests to several children may run at once.

  Args:
    name: of ``FRAMEWORKS``.
    environment: on top of this process's.
  """

  def __init__(self, name: str, environment: Mapping[str, str] | None = None):
    self.name = name
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'experiments.speed.worker', name],
      cwd=ROOT,
      env={**os.environ, **(environment or {})},
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
    )
    self._lock = threading.Lock()

  def ask(self, **request: Any) -> Any:
    """The answer.

    Raises:
      RunError: the child could not do it, or has ended.
    """
    with self._lock:
      try:
        self._process.stdin.write(json.dumps(request) + '\n')
        self._process.stdin.flush()
        line = self._process.stdout.readline()
      except BrokenPipeError:
        line = ''
    if not line:
      raise RunError(f'{self.name}: the process ended with {self._process.wait()}')
    reply = json.loads(line)
    if 'error' in reply:
      raise RunError(f'{self.name}: {reply["error"]}')
    return reply['answer']

  def close(self) -> None:
    """Ends the child, whatever it is doing."""
    self._process.kill()
    self._process.communicate()

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *_: Any) -> None:
    self.close()


def main(arguments: list[str]) -> int:
  # What a framework prints must not come between the answers.
  answers = os.fdopen(os.dup(sys.stdout.fileno()), 'w')
  os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
  try:
    framework = importlib.import_module(FRAMEWORKS[arguments[0]]).Runner()
  except (ImportError, ExperimentError) as error:
    print(f'{arguments[0]}: {reason(error)}', file=sys.stderr)
    return 2
  serve(framework, sys.stdin, answers)
  return 0


if __name__ == '__main__':
  from experiments.errors import run_main

  run_main(main)
