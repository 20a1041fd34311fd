"""Freed memory is kept for the next step."""

import os
import platform
import subprocess
import sys

import pytest

from experiments import errors
from experiments.memory import keep_memory

# Page faults of a thread that writes to 64 MiB and frees it three times, after once.
FAULTS = """
import ctypes, os, resource, threading
from experiments.memory import keep_memory
if {told}:
  assert keep_memory(os.environ)
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def step():
  block = ctypes.c_void_p(libc.malloc(2**26))
  libc.memset(block, 1, 2**26)
  libc.free(block)
def count():
  step()
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  for _ in range(3):
    step()
  print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=count)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='is for glibc')
def test_a_thread_does_not_ask_for_its_pages_again():
  clean = {n: v for n, v in os.environ.items() if not n.startswith(('MALLOC_', 'GLIBC_'))}
  faults = {
    told: int(
      subprocess.run(
        [sys.executable, '-c', FAULTS.format(told=told)],
        env=clean,
        check=True,
        capture_output=True,
        text=True,
      ).stdout
    )
    for told in (False, True)
  }
  assert faults[True] < faults[False] / 100, faults


@pytest.mark.parametrize('name', ['MALLOC_ARENA_MAX', 'GLIBC_TUNABLES'])
def test_what_the_user_told_glibc_stands(name):
  assert not keep_memory({name: '2'})


def test_elsewhere_nothing_is_told(monkeypatch):
  monkeypatch.setattr('ctypes.CDLL', lambda _: object())
  assert not keep_memory({})


def test_every_command_keeps_it(monkeypatch):
  told = []
  monkeypatch.setattr(errors, 'keep_compiled', told.append)
  monkeypatch.setattr(errors, 'keep_memory', told.append)
  with pytest.raises(SystemExit):
    errors.run_main(lambda _: 0)
  assert told == [os.environ, os.environ]
