"""A strict session: several CPU devices, and no silent broadcasting between ranks."""

import contextlib
import functools
import gc
import importlib.metadata
import os
import shutil
import tempfile

# Before jax starts its backend, and for the processes that tests start.
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '2')
# Compiling is most of the time of these tests, and none measures speed: with small modules the
# plain emitters of jax 0.10, gone from 0.11, compile four times as fast as its default ones.
if importlib.metadata.version('jaxlib').startswith('0.10.'):
  os.environ.setdefault(
    'XLA_FLAGS',
    '--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1',
  )

# What the processes that tests start compile is kept for the next of them; not
# so in this process, where tests read what the compiler says of a program.
os.environ.pop('JAX_COMPILATION_CACHE_DIR', None)

import chex
import jax
import numpy as np
import pytest

_owner = 'JATTN_TESTS_COMPILED' not in os.environ  # of the workers, who inherit it
COMPILED = os.environ.setdefault('JATTN_TESTS_COMPILED', tempfile.mkdtemp() if _owner else '')
os.environ['JAX_COMPILATION_CACHE_DIR'] = COMPILED
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
# Decoded images go there too, not among the user's own.
os.environ['XDG_CACHE_HOME'] = os.path.join(COMPILED, 'cache')

# What follows changes the time that these tests take and nothing that they see. Collecting garbage
# over and over among millions of lasting objects was a twentieth of it; keys of a compilation cache
# that is not there were a fiftieth; and a new MLIR context, with every dialect of every device, for
# each operation that is lowered, a tenth: one will do.
gc.set_threshold(50_000, 20, 100)
jax.config.update('jax_enable_compilation_cache', False)
with contextlib.suppress(ImportError, AttributeError):  # an inner part of jax, free to move
  from jax._src.interpreters import mlir

  mlir.make_ir_context = functools.cache(mlir.make_ir_context)

jax.config.update('jax_disable_most_optimizations', True)
jax.config.update('jax_num_cpu_devices', 8)
jax.config.update('jax_numpy_rank_promotion', 'raise')


@pytest.fixture
def rng() -> np.random.Generator:
  return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _fresh_trace_counts() -> None:
  chex.clear_trace_counter()


def pytest_unconfigure() -> None:
  if _owner:
    shutil.rmtree(COMPILED, ignore_errors=True)
