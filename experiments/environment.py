"""What a run ran on."""

import importlib.metadata
import os
import pathlib
import platform
import subprocess
import sys
from typing import Any

import jax

from experiments.errors import ConfigError

PACKAGES = (
  'jattn jax jaxlib flax optax chex orbax-checkpoint tensorflow-datasets array_record grain '
  'numpy pillow'
).split()


def devices() -> list[jax.Device]:
  """The accelerators, or the CPU.

  Raises:
    ConfigError: JAX_PLATFORMS asks for a platform that is not there (jax says so with a bare
      AssertionError or a long RuntimeError).
  """
  try:
    return jax.devices()
  except (AssertionError, RuntimeError) as error:
    platforms = jax.config.jax_platforms
    first = str(error).strip().partition('\n')[0]
    raise ConfigError(
      f'JAX_PLATFORMS={platforms} cannot be used here' + (f': {first}' if first else '') + '\n'
      'unset it to run on the CPU, or install jattn[cuda12], jattn[cuda13] or jattn[tpu]'
    ) from None


def join() -> bool:
  """Makes this process one of those that run the same command; returns whether it is not the first.

  JAX finds the others itself on Cloud TPU, SLURM, Open MPI and Kubernetes; elsewhere by
  JAX_COORDINATOR_ADDRESS (host:port of the first process), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

  Raises:
    ConfigError: it is not said where they are, or they cannot be reached.
  """
  try:
    told = [os.environ.get(name) for name in ('JAX_NUM_PROCESSES', 'JAX_PROCESS_ID')]
    count, index = (None if one is None else int(one) for one in told)
    print('waiting for the other processes of this run', flush=True)
    jax.distributed.initialize(num_processes=count, process_id=index)
    return jax.process_index() > 0
  except (RuntimeError, ValueError) as error:
    first = str(error).strip().partition('\n')[0]
    raise ConfigError(
      f'--distributed True: {first}\nset JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and '
      'JAX_PROCESS_ID, or run it under SLURM, Open MPI, Kubernetes or on Cloud TPU'
    ) from None


def describe() -> dict[str, Any]:
  """Versions, devices and the git revision of the code, as JSON values."""
  found = devices()
  return {
    'versions': {name: version(name) for name in PACKAGES},
    'python': platform.python_version(),
    'system': f'{platform.system()} {platform.machine()}',
    'backend': jax.default_backend(),
    'device': found[0].device_kind,
    'processor': _processor(),
    'cores': len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
    'devices': len(found),
    'processes': jax.process_count(),
    'git': _revision(),
    'command': ['python', '-m', 'experiments.train', *sys.argv[1:]],
  }


def version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _processor() -> str:
  """The processor's name; Linux alone says it well."""
  try:
    lines = pathlib.Path('/proc/cpuinfo').read_text().splitlines()
  except OSError:
    return platform.processor()
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.processor()


def _revision() -> str | None:
  """The commit, with '+' when files differ from it; None outside a checkout."""
  root = pathlib.Path(__file__).resolve().parent.parent

  def git(*arguments: str) -> str:
    return subprocess.run(
      ['git', '-C', str(root), *arguments], capture_output=True, text=True, check=True, timeout=5
    ).stdout.strip()

  try:
    return git('rev-parse', 'HEAD') + ('+' if git('status', '--porcelain', '-uno') else '')
  except (OSError, subprocess.SubprocessError):
    return None
