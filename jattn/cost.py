"""What a function costs, counted from its trace and not from a formula for each layer."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def multiply_accumulates(function: Callable, *args: Any) -> int:
  """Multiplications with accumulation in the matrix products and convolutions of ``function``.

  One for each pair of numbers multiplied and added, zero padding included, as the literature
  counts a layer's cost; the zeros that a transposed convolution (the gradient of a strided one)
  puts between pixels are not. Element-wise work, reductions and look-ups are not counted. A loop of
  known length counts as often as it runs; of a ``cond`` the dearest branch counts. What no result
  depends on, such as a map that is not returned, costs nothing.

  Args:
    function: any function that JAX can trace; nothing is computed.
    *args: its arguments, arrays or ``jax.ShapeDtypeStruct``.

  Raises:
    ValueError: there is a ``while`` loop, whose length is not known.

  >>> import jax.numpy as jnp
  >>> multiply_accumulates(jnp.dot, jnp.zeros((2, 3)), jnp.zeros((3, 5)))
  30
  """
  jaxpr = jax.make_jaxpr(function)(*args).jaxpr
  return _of_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0]


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a compiled function costs.

  Attributes:
    multiply_accumulates: see ``jattn.cost.multiply_accumulates``.
    peak_bytes: arguments, results and intermediate arrays together, as the compiler plans them for
      the default device; None on a platform that does not say.
    temporary_bytes: of these, the intermediate arrays.
    note: where XLA's own count of the same function differs by more than 2%, and why it may; else
      empty. XLA counts a multiplication and an addition as two, element-wise work too.
  """

  multiply_accumulates: int
  peak_bytes: int | None
  temporary_bytes: int | None
  note: str


def cost(function: Callable, *args: Any) -> Cost:
  """Compiles ``function`` and says what it costs; it is not run.

  Args:
    function: any function that JAX can trace.
    *args: its arguments, arrays or ``jax.ShapeDtypeStruct``.

  Raises:
    ValueError: there is a ``while`` loop, whose length is not known.

  >>> import jax.numpy as jnp
  >>> x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
  >>> cost(lambda x: x @ x, x).multiply_accumulates
  512
  """
  counted = multiply_accumulates(function, *args)
  compiled = jax.jit(function).lower(*args).compile()
  memory = compiled.memory_analysis()
  peak = temporary = None
  if memory is not None:  # a platform that does not say
    temporary = memory.temp_size_in_bytes
    peak = memory.argument_size_in_bytes + memory.output_size_in_bytes + temporary
  return Cost(counted, peak, temporary, _note(counted, compiled.cost_analysis()))


def peak_bytes(function: Callable, *args: Any) -> int | None:
  """``cost(function, *args).peak_bytes``."""
  return cost(function, *args).peak_bytes


def _note(counted: int, analysis: Any) -> str:
  """Where XLA's count differs."""
  found = (analysis or {}).get('flops', -1.0)
  if found <= 0:
    return "XLA's cost_analysis does not count this"
  if abs(found / 2 - counted) <= 0.02 * counted:
    return ''
  return (
    f"XLA's cost_analysis has {found / 2:.4g} multiply-accumulates for {counted:.4g}: it counts a "
    'loop once, no padding, element-wise work, and nothing inside the kernels of libraries'
  )


def _of_jaxpr(jaxpr: Any, wanted: list[bool]) -> tuple[int, list[bool]]:
  """The cost of what the wanted results depend on, as the compiler drops the rest.

  Returns:
    The cost, and which of the arguments they depend on.
  """
  needed = {id(var) for var, yes in zip(jaxpr.outvars, wanted, strict=True) if yes}
  total = 0
  for equation in reversed(jaxpr.eqns):
    results = [id(var) in needed for var in equation.outvars]
    if any(results):
      cost, arguments = _of_equation(equation, results)
      needed.update(id(var) for var, yes in zip(equation.invars, arguments, strict=True) if yes)
      total += cost
  return total, [id(var) in needed for var in jaxpr.invars]


def _of_equation(equation: Any, wanted: list[bool]) -> tuple[int, list[bool]]:
  """As ``_of_jaxpr``, of one equation."""
  name, params = equation.primitive.name, equation.params
  everything = [True] * len(equation.invars)
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    return _of_product(equation, contracted), everything
  if name == 'ragged_dot_general':
    numbers = params['ragged_dot_dimension_numbers']
    (contracted, _), _ = numbers.dot_dimension_numbers
    # Along a contracted axis each number belongs to one group, and there is a result of each.
    groups = equation.invars[2].aval.shape[-1]
    alone = set(numbers.lhs_ragged_dimensions) <= set(contracted)
    return _of_product(equation, contracted) // (groups if alone else 1), everything
  if name == 'conv_general_dilated':
    return _of_convolution(equation), everything
  if name == 'scan':
    return _of_scan(params, wanted)
  inner = list(_inner(params))
  whole = [len(jaxpr.outvars) == len(wanted) for jaxpr in inner]
  if name == 'cond' or (whole == [True] and len(inner[0].invars) == len(everything)):
    costs, arguments = zip(*(_of_jaxpr(jaxpr, wanted) for jaxpr in inner), strict=True)
    chosen = [True] if name == 'cond' else []
    return max(costs), [*chosen, *map(any, zip(*arguments, strict=True))]
  total = sum(_of_jaxpr(jaxpr, [True] * len(jaxpr.outvars))[0] for jaxpr in inner)
  if total and name == 'while':
    raise ValueError('the cost of a while loop is not known before it runs')
  return total, everything


def _of_product(equation: Any, contracted: tuple[int, ...]) -> int:
  left = equation.invars[0].aval.shape
  return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _of_scan(params: dict[str, Any], wanted: list[bool]) -> tuple[int, list[bool]]:
  """What is carried is wanted too where a wanted result of a later turn depends on it."""
  if 'num_consts' in params:
    constants, carried = params['num_consts'], params['num_carry']
  else:  # from jax 0.12 on
    constants, carried, _ = map(len, params['ft_in'].unpack())
  [body] = _inner(params)
  while True:
    cost, arguments = _of_jaxpr(body, wanted)
    used = arguments[constants : constants + carried]
    more = [yes or again for yes, again in zip(wanted[:carried], used, strict=True)]
    if more == wanted[:carried]:
      return cost * params['length'], arguments
    wanted = more + wanted[carried:]


def _of_convolution(equation: Any) -> int:
  """Batch, times the channels that meet, times the pairs of output and tap along every axis."""
  params = equation.params
  numbers = params['dimension_numbers']
  kernel = equation.invars[1].aval.shape
  y = equation.outvars[0].aval.shape
  pairs = itertools.starmap(
    _pairs,
    zip(
      (kernel[axis] for axis in numbers.rhs_spec[2:]),
      (y[axis] for axis in numbers.out_spec[2:]),
      params['window_strides'],
      params['padding'],
      params['lhs_dilation'],
      params['rhs_dilation'],
      strict=True,
    ),
  )
  features = y[numbers.out_spec[0]] * y[numbers.out_spec[1]]
  return features * kernel[numbers.rhs_spec[1]] * math.prod(pairs)


def _pairs(
  taps: int, outputs: int, stride: int, padding: tuple[int, int], spread: int, step: int
) -> int:
  """Pairs of an output and a tap along an axis, those that meet a zero between pixels left out."""
  places = (
    output * stride - padding[0] + tap * step for output in range(outputs) for tap in range(taps)
  )
  return sum(place % spread == 0 for place in places)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part
