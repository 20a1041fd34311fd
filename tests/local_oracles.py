"""Attention in float64 NumPy where each query sees some positions, and how a module is held to it.

An oracle here gives its maps over all N positions, however small the module keeps them.
"""

import jax
import numpy as np

from tests.proof import SHAPE, draw, flat, prove, variables_of


def project(p, x, name, heads):
  """One image [H, W, C] -> [M, N, D]."""
  out = x.reshape(-1, x.shape[-1]) @ p[f'{name}/kernel']
  if f'{name}/bias' in p:
    out = out + p[f'{name}/bias']
  return np.moveaxis(out.reshape(len(out), heads, -1), 1, 0)


def attend(scores, v, allowed):
  """[M, N, N] scores, [M, N, D], bool [N, N] -> [N, M * D] and the weights [M, N, N]."""
  weights = np.zeros(scores.shape)
  for m, i in np.ndindex(scores.shape[:2]):
    seen = np.flatnonzero(allowed[i])
    exponentials = np.exp(scores[m, i, seen] - scores[m, i, seen].max())
    weights[m, i, seen] = exponentials / exponentials.sum()
  out = np.moveaxis(weights @ v, 0, 1)
  return out.reshape(len(out), -1), weights


def places(grid):
  """The (row, column) of each position."""
  return [(i, j) for i in range(grid[0]) for j in range(grid[1])]


def pairs(grid, rule):
  """[N, N] of ``rule(query, key)``, each a (row, column)."""
  return np.array([[rule(q, k) for k in places(grid)] for q in places(grid)])


def run(module, variables, x):
  """The module outside training, compiled: an order of magnitude less time than step by step."""
  return jax.jit(lambda v, x: module.apply(v, x, train=False))(variables, x)


def hold(module, oracle, *, shape=SHAPE) -> None:
  """``prove`` for the output, and every map spread over all positions against the oracle's."""
  prove(module, lambda *given: oracle(*given)[0], shape=shape, maps=False)
  x = draw(shape)
  variables = variables_of(module, x)
  maps = run(module, variables, x).maps
  want = oracle(flat(variables), np.asarray(x, np.float64), False)[1]
  assert set(maps) == set(want)
  for name, weights in want.items():
    np.testing.assert_allclose(maps[name].dense(), weights, rtol=0, atol=1e-6)
