"""Reshaping and repeating that know where the axes of an array lie on a mesh."""

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec


def reshape(x: jax.Array, *sizes: int) -> jax.Array:
  """``x.reshape(sizes)``, also where the mesh's axes are explicit, as ``jax.make_mesh``'s are.

  There JAX knows the place of every axis while it traces, and refuses a reshape that merges or
  splits more than one at a time. Axes that become others together keep the place of the first of
  them, so images that lie on several devices stay where they are.

  Args:
    x: any array.
    sizes: of the result; one may be -1, which in an empty array is what it would be with one
      element along each axis that has none.

  Returns:
    The same numbers in the same order.

  Raises:
    TypeError: there are not as many numbers. Where an axis that is not the first of those it is
      merged with has a place, JAX's own ``ShardingTypeError``.

  >>> reshape(jnp.arange(6), 3, -1).tolist()
  [[0, 1], [2, 3], [4, 5]]
  >>> reshape(jnp.zeros((0, 3, 5)), 0, -1).shape
  (0, 15)
  """
  if not x.size and -1 in sizes and 0 in sizes:  # JAX would divide by zero
    known = math.prod(size for size in sizes if size > 0)
    unknown = math.prod(size for size in x.shape if size) // known
    sizes = tuple(unknown if size == -1 else size for size in sizes)
  spec = jax.typeof(x).sharding.spec
  if all(place is None for place in spec) or not x.size:
    return x.reshape(sizes)
  sizes = jax.eval_shape(lambda: jnp.zeros(x.shape).reshape(sizes)).shape  # -1 is known now
  places: list = [None] * len(sizes)
  for old, new in _together(x.shape, sizes):
    placed = [axis for axis in old if spec[axis] is not None]
    if not placed:
      continue
    if any(x.shape[axis] > 1 for axis in old[: old.index(placed[0])]) or len(placed) > 1:
      return x.reshape(sizes)  # JAX says what it cannot do
    first = next((axis for axis in new if sizes[axis] > 1), new[0])
    places[first] = spec[placed[0]]
  return jax.lax.reshape(x, sizes, out_sharding=_placed(x, places))


def _together(old: Sequence[int], new: Sequence[int]) -> Iterator[tuple[list[int], list[int]]]:
  """The fewest consecutive axes of both shapes that hold equally many numbers, one after another.

  >>> list(_together((2, 3, 4, 5), (6, 4, 5, 1)))
  [([0, 1], [0]), ([2], [1]), ([3], [2, 3])]
  """
  i = j = 0
  while i < len(old) and j < len(new):
    ends = [i + 1, j + 1]
    while math.prod(old[i : ends[0]]) != math.prod(new[j : ends[1]]):
      shorter = math.prod(old[i : ends[0]]) > math.prod(new[j : ends[1]])
      ends[shorter] += 1
    if math.prod(old[ends[0] :]) == 1 and math.prod(new[ends[1] :]) == 1:
      ends = [len(old), len(new)]
    yield list(range(i, ends[0])), list(range(j, ends[1]))
    i, j = ends


def for_each_image(token: jax.Array, x: jax.Array) -> jax.Array:
  """The same vectors for every image, on the devices where the images are.

  Args:
    token: [..., C].
    x: [B, ...].

  Returns:
    [B, ..., C] in the type of ``token``.

  >>> for_each_image(jnp.ones((1, 3)), jnp.zeros((2, 5, 3))).shape
  (2, 1, 3)
  """
  if jax.typeof(x).sharding.spec[0] is None:
    return jnp.broadcast_to(token, (x.shape[0], *token.shape))
  first = x[(slice(None), *[0] * (x.ndim - 1))]
  # Of a number of each image: new zeros, outside ``jax.set_mesh``, jax 0.12 places nowhere.
  zeros = ((first == first) & False).astype(token.dtype)
  return jnp.expand_dims(zeros, [1 + axis for axis in range(token.ndim)]) + token[None]


def place_as(values: jax.Array, x: jax.Array) -> jax.Array:
  """``values`` on the devices where the same axes of x are, if the mesh's axes are explicit.

  Args:
    values: as many axes as x, each as long or of length one.
    x: any array.

  Returns:
    The same numbers.

  >>> place_as(jnp.ones((2, 1)), jnp.zeros((2, 3))).shape
  (2, 1)
  """
  spec = jax.typeof(x).sharding.spec
  if all(place is None for place in spec):
    return values
  same = (size == other for size, other in zip(values.shape, x.shape, strict=True))
  places = [place if here else None for place, here in zip(spec, same, strict=True)]
  return jax.sharding.reshard(values, _placed(x, places))


def placed_by_xla(function: Callable, x: jax.Array, *, axes: int = 1) -> Callable:
  """``function`` with the mesh's axes automatic inside, if x lies on explicit ones.

  For programs whose arrays XLA had better place, as it does without explicit axes: loops over
  blocks, several changed copies of each image.

  Args:
    function: of arrays, in any tree.
    x: any array.
    axes: how many of the first axes of every result are where those of x are.

  Returns:
    A function of the same arrays, with the same results.

  >>> placed_by_xla(jnp.sin, jnp.zeros((2, 3)))(jnp.zeros((2, 3))).shape
  (2, 3)
  """
  spec = jax.typeof(x).sharding.spec
  if all(place is None for place in spec):
    return function
  return jax.sharding.auto_axes(function, out_sharding=_placed(x, spec[:axes]))


def on_any_mesh(name: str, *, axes: int = 1) -> Callable[[Callable], Callable]:
  """A decorator: ``placed_by_xla`` for whatever the function is called with.

  Args:
    name: of the parameter whose places the results have.
    axes: how many of the first axes of every result are where those of that argument are.

  >>> @on_any_mesh('x')
  ... def scaled(x, *, by=2):
  ...   return by * x
  >>> scaled(jnp.ones(2), by=3).tolist()
  [3.0, 3.0]
  """

  def decorate(function: Callable) -> Callable:
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*values, **named):
      given = signature.bind(*values, **named).arguments
      if all(place is None for place in jax.typeof(given[name]).sharding.spec):
        return function(*values, **named)
      arrays = {key: value for key, value in given.items() if _are_arrays(value)}
      fixed = {key: value for key, value in given.items() if key not in arrays}
      run = placed_by_xla(lambda arrays: function(**fixed, **arrays), given[name], axes=axes)
      return run(arrays)

    return call

  return decorate


def _are_arrays(tree) -> bool:
  leaves = jax.tree.leaves(tree)
  return bool(leaves) and all(hasattr(leaf, 'dtype') for leaf in leaves)


def placed_as_traced(function: Callable, x: jax.Array) -> Callable:
  """``function``, to be called inside of one that is ``placed_by_xla``, traced outside of it.

  Args:
    function: of arrays that every device has whole.
    x: what the other is placed by.

  Returns:
    A function of the same arrays, with the same results.
  """
  if all(place is None for place in jax.typeof(x).sharding.spec):
    return function
  return jax.sharding.explicit_axes(function, in_sharding=_placed(x, ()))


def _placed(x: jax.Array, places: Sequence) -> NamedSharding:
  """``places`` of the axes on the mesh of x."""
  return NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*places))
