"""How an experiment tells a person what went wrong: one or two lines and an exit code."""

import os
import sys
from collections.abc import Callable

from experiments.compiled import keep_compiled
from experiments.memory import keep_memory


class ExperimentError(Exception):
  """Something that the person running the command can put right."""

  code = 1


class ConfigError(ExperimentError):
  """A flag or configuration that cannot work."""

  code = 2


class InputError(ExperimentError):
  """Data that is missing or damaged."""

  code = 3


class RunError(ExperimentError):
  """A run directory or checkpoint that cannot be used."""

  code = 4


class Diverged(ExperimentError):
  """Loss or gradient stayed non-finite."""

  code = 5


STOPPED = 75  # EX_TEMPFAIL: saved, run the same command again


def run_main(main: Callable[[list[str]], int]) -> None:
  """Runs ``main`` on the command line and exits; an ExperimentError prints its message alone.

  What JAX compiles is kept for the next time, see ``experiments.compiled``, and freed memory for
  the next step, see ``experiments.memory``.
  """
  keep_compiled(os.environ)
  keep_memory(os.environ)
  try:
    code = main(sys.argv[1:])
  except ExperimentError as error:
    print(f'error: {error}', file=sys.stderr)
    code = error.code
  except KeyboardInterrupt:
    code = 130
  sys.exit(code)
