"""Relative positions: which entry of a learned table stands for which pair of positions."""

from collections.abc import Sequence
from typing import Literal

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jattn.ops.attention_operands import PairFunction
from jattn.ops.reshape import reshape
from jattn.ops.softmax import accumulation_dtype


def relative_index(grid: tuple[int, int], *, sign: Literal['query-key', 'key-query']) -> np.ndarray:
  """Where each pair of positions of a grid finds its entry in a table of 2-D differences.

  The table has (2H-1)(2W-1) entries, row-major over differences of rows, then of columns, the most
  negative first. ``query-key`` is the sign of Swin (Liu et al. 2021, arXiv 2103.14030) and BEiT,
  ``key-query`` that of CoAtNet (Dai et al. 2021, arXiv 2106.04803) and MaxViT (Tu et al. 2022,
  arXiv 2204.01697); one is the transpose of the other.

  Args:
    grid: H, W.
    sign: which difference is meant.

  Returns:
    [N, N] integers, queries by keys, positions row-major.

  Raises:
    ValueError: another sign.

  >>> relative_index((1, 3), sign='query-key').tolist()
  [[2, 1, 0], [3, 2, 1], [4, 3, 2]]
  """
  if sign not in ('query-key', 'key-query'):
    raise ValueError(f"{sign=} must be 'query-key' or 'key-query'")
  height, width = grid
  row, column = (axis.ravel() for axis in np.indices(grid))
  down = row[:, None] - row[None, :] + height - 1
  right = column[:, None] - column[None, :] + width - 1
  index = down * (2 * width - 1) + right
  return index if sign == 'query-key' else index.T


def relative_bias(
  table: jax.Array, grid: tuple[int, int], *, sign: Literal['query-key', 'key-query']
) -> PairFunction:
  """The bias of each pair of positions of a grid, as the function that ``attend`` takes.

  ``b_mqk = table[difference of rows, difference of columns, m]``, looked up for the pairs that are
  asked for, so that nobody needs all N x N of them.

  Args:
    table: [2H-1, 2W-1, M], the most negative difference first.
    grid: H, W.
    sign: which difference is meant, as in ``relative_index``.

  Returns:
    ``bias(query_indices [Q], key_indices [K])`` -> [M, Q, K]; gradients flow into the table.

  Raises:
    ValueError: another sign.
    AssertionError: the table is of another grid.

  >>> bias = relative_bias(jnp.arange(5.0).reshape(1, 5, 1), (1, 3), sign='query-key')
  >>> bias(jnp.arange(3), jnp.arange(3)).tolist()
  [[[2.0, 1.0, 0.0], [3.0, 2.0, 1.0], [4.0, 3.0, 2.0]]]
  """
  if sign not in ('query-key', 'key-query'):
    raise ValueError(f"{sign=} must be 'query-key' or 'key-query'")
  height, width = grid
  chex.assert_shape(table, (2 * height - 1, 2 * width - 1, None))
  rows = table.reshape(-1, table.shape[-1])

  def bias(queries: jax.Array, keys: jax.Array) -> jax.Array:
    down = queries[:, None] // width - keys[None, :] // width
    right = queries[:, None] % width - keys[None, :] % width
    if sign == 'key-query':
      down, right = -down, -right
    index = (down + height - 1) * (2 * width - 1) + right + width - 1
    return jnp.moveaxis(rows[index], -1, 0)

  return bias


def relative_index_1d(queries: int, keys: int) -> np.ndarray:
  """Where each query and key on a line find their entry in a table: ``k - q + keys - 1``.

  As in bottleneck transformers (Srinivas et al. 2021, arXiv 2101.11605), where both are W and the
  table has 2W - 1 rows.

  Args:
    queries: how many, numbered from the same place as the keys.
    keys: how many, at least as many as the queries.

  Returns:
    [Q, K] integers in 0..2K-2.

  >>> relative_index_1d(3, 3).tolist()
  [[2, 3, 4], [1, 2, 3], [0, 1, 2]]
  """
  return np.arange(keys)[None, :] - np.arange(queries)[:, None] + keys - 1


def resize_relative(table: jax.Array, sizes: Sequence[int]) -> jax.Array:
  """A table of relative positions, for a grid of another size, by linear interpolation.

  The first axes have 2S - 1 rows each, differences -(S-1)..S-1. Difference zero stays difference
  zero and the farthest stay the farthest; between them it is linear. At its own size the table is
  returned as it is.

  Args:
    table: [2S-1, ...] or [2H-1, 2W-1, ...].
    sizes: the new S of each of the first axes.

  Returns:
    [2S'-1, ...] in the type of ``table``.

  >>> resize_relative(jnp.array([-2.0, 0.0, 2.0]), [3]).tolist()
  [-2.0, -1.0, 0.0, 1.0, 2.0]
  """
  for axis, size in enumerate(sizes):
    old, new = table.shape[axis], 2 * size - 1
    if new == old:
      continue
    place = np.linspace(0, old - 1, new) if new > 1 else np.array([(old - 1) / 2])
    distance = np.abs(place[:, None] - np.arange(old)[None, :])
    mix = jnp.asarray(np.maximum(0, 1 - distance), table.dtype)
    table = jnp.moveaxis(jnp.tensordot(mix, table, axes=(1, axis)), 0, axis)
  return table


def resize_relative_geometric(table: jax.Array, sizes: Sequence[int]) -> jax.Array:
  """A table of relative positions, for a grid of another size, as BEiT and timm resize theirs.

  The old differences 0, 1, 2, 3, ... of an axis are taken to lie at 0, 1, 1 + r, 1 + r + r^2, ...
  with the ratio r in 1.01..1.5 that puts the farthest on the new farthest, and it is linear between
  them: near differences keep their entries and the far ones are spread. BEiT's code (Bao et al.
  2021, arXiv 2106.08254) is cubic between them, timm's linear. On a smaller grid r is 1.01 and
  the far entries fall off. Where one axis changes size all are resampled, as in timm. At its own
  size the table is returned as it is.

  Args:
    table: [2S-1, ...] or [2H-1, 2W-1, ...].
    sizes: the new S of each of the first axes.

  Returns:
    [2S'-1, ...] in the type of ``table``.

  >>> resize_relative_geometric(jnp.array([4.0, 1.0, 0.0, 1.0, 4.0]), [3]).tolist()
  [4.0, 1.0, 0.0, 1.0, 4.0]
  >>> resize_relative_geometric(jnp.array([4.0, 1.0, 0.0, 1.0, 4.0]), [2]).tolist()
  [1.0, 0.0, 1.0]
  """
  farthest = [size - 1 for size in sizes]
  if all(table.shape[axis] == 2 * far + 1 for axis, far in enumerate(farthest)):
    return table
  for axis, far in enumerate(farthest):
    old = _geometric_places(table.shape[axis] // 2, far)
    new = np.arange(-far, far + 1)
    mix = np.stack([np.interp(new, old, share) for share in np.eye(len(old))], axis=1)
    mixed = jnp.tensordot(jnp.asarray(mix, table.dtype), table, axes=(1, axis))
    table = jnp.moveaxis(mixed, 0, axis)
  return table


def _geometric_places(count: int, farthest: int) -> np.ndarray:
  """``count`` places on either side of zero, the last of them at ``farthest`` if it can be."""
  low, high, ratio = 1.01, 1.5, 1.255
  while high - low > 1e-6:
    ratio = (low + high) / 2
    reached = (ratio**count - 1) / (ratio - 1)
    low, high = (low, ratio) if reached > farthest else (ratio, high)
  places = np.cumsum(ratio ** np.arange(count))
  return np.concatenate([-places[::-1], [0.0], places])


def relative_logits(q: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
  """Scores of queries with two axes of relative positions: ``q . r_row + q . r_column``.

  Shaw et al. 2018, arXiv 1803.02155, on two axes as Bello et al. 2019, arXiv 1904.09925.

  Args:
    q: [..., H, W, M, D] queries.
    rows: [H, K, D], a vector for each row of a query and row of a key.
    columns: [W, L, D], the same for columns.

  Returns:
    [..., M, H*W, K*L], float32 (float64 for float64 queries).

  Raises:
    AssertionError: shapes disagree.

  >>> q, rows, columns = jnp.ones((1, 1, 1, 2)), jnp.ones((1, 2, 2)), jnp.zeros((1, 3, 2))
  >>> relative_logits(q, rows, columns).tolist()
  [[[2.0, 2.0, 2.0, 2.0, 2.0, 2.0]]]
  """
  *leading, height, width, maps, head = q.shape
  chex.assert_shape(rows, (height, None, head))
  chex.assert_shape(columns, (width, None, head))
  dtype = accumulation_dtype(q)
  down = jnp.einsum('...hwmd,hkd->...mhwk', q, rows.astype(q.dtype), preferred_element_type=dtype)
  right = jnp.einsum(
    '...hwmd,wld->...mhwl', q, columns.astype(q.dtype), preferred_element_type=dtype
  )
  both = down[..., :, None] + right[..., None, :]
  return reshape(both, *leading, maps, height * width, rows.shape[1] * columns.shape[1])
