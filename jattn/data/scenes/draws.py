"""Whole random numbers that are the same on every device and under every version of JAX.

`jax.random.fold_in` is the Threefry block itself, which is fixed; what `jax.random.randint` and
`permutation` make of the blocks has changed before, and a dataset must not change with it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_LOW = 0xFFFF
_FIRST_BLOCK = 1 << 30  # of the words that `apart` uses: far from those of `words`


def make_key(*numbers: int) -> jax.Array:
  """The random key of some numbers, each in 0..2^31 - 1."""
  key = jax.random.key(numbers[0], impl='threefry2x32')
  for number in numbers[1:]:
    key = jax.random.fold_in(key, number)
  return key


def words(key: jax.Array, count: int) -> jax.Array:
  """Random words [count] uint32, each a function of the key and of its position alone.

  >>> key = make_key(0)
  >>> bool((words(key, 3) == words(key, 8)[:3]).all())
  True
  """
  blocks = jax.vmap(_block, (None, 0))(key, jnp.arange(-(-count // 2)))
  return blocks.reshape(-1)[:count]


def _block(key: jax.Array, position: jax.Array) -> jax.Array:
  """Two random words."""
  return jax.random.key_data(jax.random.fold_in(key, position))


def below(word: jax.Array, count: jax.Array | int) -> jax.Array:
  """floor(word * count / 2^32): a number in 0..count-1, int32, without 64-bit arithmetic.

  Each comes up with a probability that is within 2^-32 of 1 / count.

  >>> below(jnp.array([0, 2**31, 2**32 - 1], jnp.uint32), 10).tolist()
  [0, 5, 9]

  Args:
    word: uint32, any shape.
    count: >= 1, an int or integers that broadcast against `word`.
  """
  count = jnp.asarray(count).astype(jnp.uint32)
  high, low = word >> 16, word & _LOW
  count_high, count_low = count >> 16, count & _LOW
  one, other = low * count_high, high * count_low
  carry = (low * count_low >> 16) + (one & _LOW) + (other & _LOW)
  return (high * count_high + (one >> 16) + (other >> 16) + (carry >> 16)).astype(jnp.int32)


def rounded(word: jax.Array, extent: int) -> jax.Array:
  """round(u * extent) of u uniform in [0, 1): 0 and `extent` are half as likely as the others.

  >>> word = jnp.array([0, 2**29 - 1, 2**29, 2**32 - 1], jnp.uint32)
  >>> rounded(word, 4).tolist()
  [0, 0, 1, 4]
  """
  return (below(word, 2 * extent) + 1) // 2


def apart(
  key: jax.Array,
  count: int,
  *,
  side: int,
  corner: Callable[[jax.Array], jax.Array],
  restart: bool,
) -> jax.Array:
  """Corners [count, 2] int32 of squares of `side` pixels that do not overlap, by rejection.

  They are drawn one after another and redrawn while they overlap an earlier one. With `restart` an
  overlap begins anew with the first, which makes every arrangement equally likely; without, later
  squares take what room is left, which needs fewer draws.

  Args:
    key: random key; `words` of the same key are other words.
    count: number of squares.
    side: pixels; two overlap where both coordinates of their corners differ by less.
    corner: random words [2] to a corner [2]. There must always be room, or this never ends.
    restart: as above.
  """

  def place(state):
    attempt, placed, corners = state
    drawn = corner(_block(key, _FIRST_BLOCK + attempt))[None]
    near = (jnp.abs(corners - drawn) < side).all(axis=1)
    clash = (near & (jnp.arange(count) < placed)).any()
    corners = jnp.where((jnp.arange(count) == placed)[:, None], drawn, corners)
    return attempt + 1, jnp.where(clash, 0 if restart else placed, placed + 1), corners

  start = (jnp.int32(0), jnp.int32(0), jnp.zeros((count, 2), jnp.int32))
  return jax.lax.while_loop(lambda state: state[1] < count, place, start)[2]
