"""Every example in a docstring and in the README runs."""

import doctest
import importlib
import pathlib
import pkgutil

import pytest

import jattn
from jattn import ops

ROOT = pathlib.Path(__file__).parent.parent
MODULES = sorted(
  info.name
  for info in pkgutil.walk_packages(jattn.__path__, 'jattn.')
  if not info.name.startswith('jattn.data.digits')
)
EXPERIMENTS = [f'experiments.{name}' for name in ('collect', 'explanations', 'explanation_files')]


@pytest.mark.parametrize('name', [*MODULES, *EXPERIMENTS])
def test_docstrings(name):
  assert doctest.testmod(importlib.import_module(name)).failed == 0


@pytest.mark.parametrize('name', [name for name in ops.__all__ if name != 'Init'])
def test_every_op_has_an_example(name):
  function = getattr(ops, name)
  examples = doctest.DocTestFinder(recurse=False).find(function, name)
  assert any(test.examples for test in examples), f'ops.{name} shows no example'


def test_the_readme_runs():
  text = (ROOT / 'README.md').read_text()
  test = doctest.DocTestParser().get_doctest(text, {}, 'README.md', 'README.md', 0)
  assert len(test.examples) >= 5
  runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
  runner.run(test)
  assert runner.failures == 0
