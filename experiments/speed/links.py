"""A projection to many devices: what a training step sends, and how long links take for it.

Nothing is run on many devices. The step is compiled for eight of the CPU and the collectives are
read from the compiled program; a ring moves 2 (n - 1) / n times the bytes of an all-reduce through
each link (Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002). The links are those of their
makers' data sheets, in one direction.
"""

import json
import os
import re
import subprocess
import sys
from typing import Any

from experiments.errors import RunError
from experiments.speed.worker import ROOT

MODELS = (('seed_classifier', 32), ('resnet18', 224))
DEVICES = 8
# bytes a second, in one direction, of one device
LINKS = {
  'NVLink of an H100 SXM': 450e9,  # NVIDIA H100 data sheet: 900 GB/s both ways together
  'PCI Express 5.0 x16': 63e9,  # PCI-SIG: 32 GT/s a lane, 128b/130b
  'InfiniBand NDR': 50e9,  # NVIDIA ConnectX-7 data sheet: 400 Gb/s
}
_BYTES = {'f32': 4, 'bf16': 2, 'f16': 2, 's32': 4, 'u32': 4, 'pred': 1, 'f64': 8, 's64': 8, 'u8': 1}
_COLLECTIVE = re.compile(
  r'= (?P<shapes>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)'
  r'(-start)?\('
)
_ARRAY = re.compile(r'(?P<type>[a-z]+\d*)\[(?P<sizes>[\d,]*)\]')


def projection(rounds: int) -> dict[str, Any]:
  """Bytes of the collectives of a step, and milliseconds by link for them; ``ratio`` is not one.

  ``ratio`` is all that the step of the first model sends over the bytes of its parameters: 1 where
  only the gradients are sent.
  """
  del rounds
  models = {}
  for name, size in MODELS:
    found = _in_a_process(name, size)
    ring = 2 * (DEVICES - 1) / DEVICES * found['bytes'].get('all-reduce', 0)
    found['ring_ms'] = {link: 1e3 * ring / speed for link, speed in LINKS.items()}
    models[name] = found
  first = models[MODELS[0][0]]
  return {
    'id': 'links',
    'projection': True,
    'devices': DEVICES,
    'ratio': sum(first['bytes'].values()) / first['parameter_bytes'],
    'models': models,
  }


def collective_bytes(program: str) -> dict[str, int]:
  """Bytes of the results of each kind of collective in the text of a compiled program.

  >>> collective_bytes('  %r = (f32[2,3]{1,0}, bf16[]) all-reduce(%a, %b), channel_id=1')
  {'all-reduce': 26}
  """
  found: dict[str, int] = {}
  for match in _COLLECTIVE.finditer(program):
    total = found.get(match['kind'], 0)
    for array in _ARRAY.finditer(match['shapes']):
      count = 1
      for size in filter(None, array['sizes'].split(',')):
        count *= int(size)
      total += count * _BYTES[array['type']]
    found[match['kind']] = total
  return found


def _in_a_process(model: str, size: int) -> dict[str, Any]:
  """The number of devices is fixed when JAX starts."""
  flags = f'{os.environ.get("XLA_FLAGS", "")} --xla_force_host_platform_device_count={DEVICES}'
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.speed.links', model, str(size)],
    cwd=ROOT,
    env={**os.environ, 'XLA_FLAGS': flags, 'JAX_PLATFORMS': 'cpu'},
    stdout=subprocess.PIPE,
    text=True,
    check=False,
  )
  if done.returncode:
    raise RunError(f'compiling {model} for {DEVICES} devices ended with {done.returncode}')
  return json.loads(done.stdout.splitlines()[-1])


def measure(model: str, size: int, batch: int = 4 * DEVICES) -> dict[str, Any]:
  """Of the sharded training step of ``jattn.training`` on all devices of this process."""
  import dataclasses

  import jax
  import jax.numpy as jnp

  from experiments.config import PRESETS
  from experiments.setup import DataFacts, make_setup
  from jattn.types import Batch

  facts = DataFacts(
    name='none',
    fingerprint='',
    num_classes=10,
    class_names=tuple('0123456789'),
    size=size,
    mean=(0.5,) * 3,
    std=(0.25,) * 3,
    train_examples=100 * batch,
  )
  config = dataclasses.replace(PRESETS['cifar10'], model=model, batch_size=batch)
  setup = make_setup(config, facts)
  place = jax.sharding.NamedSharding(setup.mesh, jax.sharding.PartitionSpec(('data', 'fsdp')))

  def spread(shape, dtype):
    return jax.ShapeDtypeStruct(shape, dtype, sharding=place)

  given = Batch(
    images=spread((batch, size, size, 3), jnp.uint8),
    labels=spread((batch,), jnp.int32),
    mask=spread((batch,), jnp.bool_),
  )
  program = setup.train_step().lower(setup.abstract_state(), given).compile().as_text()
  params = setup.variable_shapes()['params']
  return {
    'bytes': collective_bytes(program),
    'parameter_bytes': sum(4 * leaf.size for leaf in jax.tree.leaves(params)),
    'size': size,
  }


if __name__ == '__main__':
  print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
