"""Rows of attention: how much each token counts, followed back through position maps.

A row says how much each token counts: those before the grid (class token, registers) and those of
the grid. Following it through a map A gives ``row A``, how much each token that A looks at counts.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jattn.explain.network import Look, Network


class Row(NamedTuple):
  """How much each token counts.

  Attributes:
    prefix: [B, P], the tokens that are none of the grid's; the class token is the first.
    plane: [B, h, w], those of the grid.
  """

  prefix: jax.Array
  plane: jax.Array


def first_row(network: Network, grid: tuple[int, int], batch: int) -> Row:
  """What is classified, as a row: the class token, or the mean over the grid."""
  if network.class_token:
    return Row(jnp.ones((batch, 1)), jnp.zeros((batch, *grid)))
  return Row(jnp.zeros((batch, 0)), jnp.full((batch, *grid), 1 / (grid[0] * grid[1])))


def asked(row: Row, look: Look) -> tuple[jax.Array, Row]:
  """The part of ``row`` on the queries of ``look`` [B, Q], and the part on tokens that do not ask.

  Where the map has another grid, each cell is spread evenly over the area it covers there.
  """
  prefix, _, grid = _layout(look)
  first = _fit(row.prefix, prefix)
  if grid is None:
    return first, Row(jnp.zeros_like(first), row.plane)
  plane = regrid(row.plane, grid)
  queries = jnp.concatenate([first, plane.reshape(len(plane), -1)], axis=1)
  return queries, Row(jnp.zeros_like(first), jnp.zeros((len(plane), *look.grid)))


def pulled(queries: jax.Array, weights: jax.Array, look: Look) -> Row:
  """``queries A`` [B, Q] [B, Q, K], as a row over the tokens that the map looks at.

  Weight on what lies outside the grid is lost.
  """
  _, prefix, _ = _layout(look)
  height, width = look.grid
  count = prefix + height * width
  if look.keys is None:
    tokens = jnp.einsum('bq,bqk->bk', queries, weights)
  else:
    # Keys before the grid's are the first columns; what is outside goes to a place of its own.
    columns = np.where(look.keys < 0, count, look.keys + prefix)
    columns[:, :prefix] = np.arange(prefix)
    amounts = (queries[:, :, None] * weights).reshape(len(queries), -1)
    tokens = jnp.zeros((len(queries), count + 1)).at[:, columns.ravel()].add(amounts)[:, :-1]
  return Row(tokens[:, :prefix], tokens[:, prefix:].reshape(-1, height, width))


def own(queries: jax.Array, look: Look) -> Row:
  """``queries I``: every query looks at its own place, which a residual connection adds."""
  prefix, _, grid = _layout(look)
  if grid is None:
    return Row(queries, jnp.zeros((len(queries), *look.grid)))
  plane = queries[:, prefix:].reshape(-1, *grid)
  return Row(queries[:, :prefix], regrid(plane, look.grid))


def kept(weights: jax.Array, look: Look) -> jax.Array:
  """[B, Q]: what each row of the map [B, Q, K] sums to, without weight outside the grid."""
  if look.keys is None:
    return weights.sum(axis=-1)
  _, prefix, _ = _layout(look)
  inside = (look.keys >= 0) | (np.arange(look.keys.shape[1]) < prefix)
  return jnp.sum(weights * inside[None], axis=-1)


def add(*rows: Row) -> Row:
  """The sum; a missing token before the grid counts zero."""
  count = max(row.prefix.shape[1] for row in rows)
  return Row(sum(_fit(row.prefix, count) for row in rows), sum(row.plane for row in rows))


def regrid(plane: jax.Array, grid: tuple[int, int]) -> jax.Array:
  """[B, h, w] -> [B, *grid]: each cell spread evenly over the area it covers; the sum stays.

  >>> regrid(jnp.ones((1, 1, 2)), (1, 4)).tolist()
  [[[0.5, 0.5, 0.5, 0.5]]]
  """
  if plane.shape[1:] == tuple(grid):
    return plane
  rows, columns = _overlap(plane.shape[1], grid[0]), _overlap(plane.shape[2], grid[1])
  return jnp.einsum('bhw,hy,wx->byx', plane, rows, columns)


def _overlap(before: int, after: int) -> np.ndarray:
  """[before, after]: which part of each old cell lies in each new one; rows sum to one."""
  old, new = np.arange(before)[:, None] / before, np.arange(after)[None] / after
  shared = np.minimum(old + 1 / before, new + 1 / after) - np.maximum(old, new)
  return (np.maximum(shared, 0) * before).astype(np.float32)


def _fit(prefix: jax.Array, count: int) -> jax.Array:
  """The first ``count`` tokens, zeros where there are fewer."""
  missing = max(0, count - prefix.shape[1])
  return jnp.pad(prefix, ((0, 0), (0, missing)))[:, :count]


def _layout(look: Look) -> tuple[int, int, tuple[int, int] | None]:
  """How many queries and how many keys come before the grid, and the grid of the queries.

  The grid is None where only tokens before it ask (class attention).
  """
  height, width = look.grid
  queries, keys = look.shape[-2:]
  before = keys - height * width if look.keys is None else queries - height * width
  before = max(0, before)
  if queries >= height * width:
    return queries - height * width, before, look.grid
  if queries <= before:
    return queries, before, None
  for stride in range(2, max(height, width) + 1):
    grid = (-(-height // stride), -(-width // stride))
    if grid[0] * grid[1] == queries:
      return 0, before, grid
  raise ValueError(f'{look.path} has {queries} queries, which are no strided grid of {look.grid}')
