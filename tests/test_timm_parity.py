"""Ours against what timm computed: outputs, every gradient, batch statistics, and both converters.

``fixtures/timm/`` holds what timm's layers gave (in float64, see ``fixtures/make_timm.py``);
neither timm nor torch is needed here.
"""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.attention import MECHANISMS
from jattn.pooling import POOLINGS
from jattn.weights import from_timm, to_timm
from tests.fixtures.timm_cases import CASES
from tests.proof import output

FOLDER = Path(__file__).parent / 'fixtures' / 'timm'
TOLERANCE = 1e-5


@functools.cache
def read(name):
  with np.load(FOLDER / f'{name}.npz') as file:
    return dict(file)


def under(arrays, prefix):
  return {k.removeprefix(prefix): v for k, v in arrays.items() if k.startswith(prefix)}


@pytest.mark.parametrize('case', CASES, ids=lambda case: case.id)
def test_equals_timm(case):
  arrays = under(read(case.name), f'{case.id}/')
  state = under(arrays, 'state/')
  module = (MECHANISMS | POOLINGS)[case.name](**case.settings)
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros(case.shape), train=False)
  )
  variables = from_timm(module, state, shapes)
  back = to_timm(module, variables)
  assert back.keys() == {k for k in state if k in back}
  for name, value in back.items():
    np.testing.assert_array_equal(value, state[name])

  for mode in ('eval', 'train') if case.train else ('eval',):
    found = under(arrays, f'{mode}/')
    out, gradient, stats = run(module, variables, found, train=mode == 'train')
    close(out, found['out'])
    for name, value in to_timm(module, {'params': gradient}).items():
      close(value, found[f'grad/{name}'])
    if mode == 'train':
      check_statistics(module, stats, found)


def run(module, variables, arrays, *, train):
  """Our output, gradient of its product with the probe, and new statistics."""
  constants = {k: v for k, v in variables.items() if k != 'params'}

  def loss(params):
    given = {'params': params, **constants}
    x = jnp.asarray(arrays['x'])
    returned, new = module.apply(given, x, train=train, mutable=['batch_stats'])
    out = output(returned)
    return (out * jnp.asarray(arrays['probe'])).sum(), (out, new)

  gradient, (out, new) = jax.jit(jax.grad(loss, has_aux=True))(variables.get('params', {}))
  return out, gradient, new


def check_statistics(module, stats, found):
  """Running means and variances agree: the variance is fed the unbiased one, as PyTorch's is."""
  new = to_timm(module, stats)
  assert new
  for name, value in new.items():
    close(value, found[f'new/{name}'])


def close(got, want):
  assert got.shape == want.shape, (got.shape, want.shape)
  np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE * max(1, np.abs(want).max()))


def test_every_file_belongs_to_a_case():
  assert {path.stem for path in FOLDER.glob('*.npz')} == {case.name for case in CASES}
