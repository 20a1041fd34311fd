"""What a function costs, counted from its trace and not from a formula for each layer."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.extend import core


def multiply_accumulates(function: Callable, *args: Any) -> int:
  """Multiplications with accumulation in the matrix products and convolutions of ``function``.

  One for each pair of numbers multiplied and added, zero padding included, as the literature
  counts a layer's cost; element-wise work, reductions and look-ups are not counted. A loop of
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
  return _of_jaxpr(jax.make_jaxpr(function)(*args).jaxpr)


def _of_jaxpr(jaxpr: Any) -> int:
  """The cost of the equations that a result depends on: the compiler drops the others."""
  needed = {id(var) for var in jaxpr.outvars}
  total = 0
  for equation in reversed(jaxpr.eqns):
    if needed.isdisjoint(map(id, equation.outvars)):
      continue
    needed.update(map(id, equation.invars))
    total += _of_equation(equation)
  return total


def _of_equation(equation: Any) -> int:
  name, params = equation.primitive.name, equation.params
  if name == 'dot_general':
    (contracted, _), _ = params['dimension_numbers']
    left = equation.invars[0].aval.shape
    return math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
  if name == 'conv_general_dilated':
    kernel = equation.invars[1].aval.shape
    outputs = kernel[params['dimension_numbers'].rhs_spec[0]]
    return math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
  inner = [_of_jaxpr(jaxpr) for jaxpr in _inner(params)]
  if not any(inner):
    return 0
  if name == 'while':
    raise ValueError('the cost of a while loop is not known before it runs')
  if name == 'cond':
    return max(inner)
  return sum(inner) * (params['length'] if name == 'scan' else 1)


def _inner(params: dict[str, Any]) -> Iterator[Any]:
  for value in params.values():
    for part in value if isinstance(value, tuple | list) else (value,):
      if isinstance(part, core.ClosedJaxpr):
        yield part.jaxpr
      elif isinstance(part, core.Jaxpr):
        yield part
