"""A function as a list of steps, so that any value inside can be read, moved and differentiated.

A map is a return value: what the network multiplies by is a variable somewhere inside. Here the
function is traced, calls are written out in place, and the steps are run again with something added
to that variable. The derivative by what was added is the derivative by the variable.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax.extend import core

# Calls that are nothing but their body. A custom derivative is not: it stays one step.
_CALLS = ('jit', 'pjit', 'closed_call', 'core_call', 'remat', 'remat2', 'checkpoint')

# What puts entries elsewhere, each as it was, and leaves some out or zeros in.
_REARRANGING = (
  'broadcast_in_dim',
  'concatenate',
  'convert_element_type',
  'copy',
  'expand_dims',
  'gather',
  'pad',
  'reshape',
  'rev',
  'slice',
  'split',
  'squeeze',
  'transpose',
)


@dataclasses.dataclass(frozen=True)
class Step:
  """One equation: ``outputs = primitive(*inputs, **params)``, all values by number."""

  primitive: Any
  params: Mapping[str, Any]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Program:
  """The steps of a traced function. Values have numbers, which rise as they are made.

  Attributes:
    steps: in the order of the trace.
    constants: values that are known, by number.
    inputs: numbers of the leaves of the arguments.
    outputs: numbers of the leaves of what is returned.
    shapes: what each value is, by number.
  """

  steps: tuple[Step, ...]
  constants: Mapping[int, Any]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  shapes: Mapping[int, jax.ShapeDtypeStruct]

  def run(
    self,
    values: Mapping[int, Any],
    wanted: Sequence[int],
    *,
    edits: Mapping[int, Callable[[jax.Array], jax.Array]] | None = None,
  ) -> list[Any]:
    """The values numbered ``wanted``; only the steps they need are run.

    Args:
      values: what is given, by number: inputs, or anything inside, which is then not made again.
      wanted: numbers.
      edits: what replaces a value as soon as it is made or given, for all that reads it later.

    Raises:
      KeyError: a value is needed that nothing makes.
    """
    edits = edits or {}
    known = {number: edits[number](v) if number in edits else v for number, v in values.items()}
    needed = set(wanted) - set(known)
    chosen = []
    for step in reversed(self.steps):
      if needed.isdisjoint(step.outputs):
        continue
      chosen.append(step)
      needed |= set(step.inputs) - set(known)
    for step in reversed(chosen):
      read = [known[i] if i in known else self.constants[i] for i in step.inputs]
      made = step.primitive.bind(*read, **step.primitive.get_bind_params(step.params))
      made = made if step.primitive.multiple_results else [made]
      for number, value in zip(step.outputs, made, strict=True):
        if number not in known:
          known[number] = edits[number](value) if number in edits else value
    return [known[i] if i in known else self.constants[i] for i in wanted]

  def reached_from(self, numbers: Sequence[int]) -> set[int]:
    """Everything that depends on one of ``numbers``, themselves included."""
    reached = set(numbers)
    for step in self.steps:
      if not reached.isdisjoint(step.inputs):
        reached.update(step.outputs)
    return reached

  def reaching(self, number: int) -> set[int]:
    """Everything that the value ``number`` depends on, itself included."""
    reaching = {number}
    for step in reversed(self.steps):
      if not reaching.isdisjoint(step.outputs):
        reaching.update(step.inputs)
    return reaching

  def source(self, shown: int, used: set[int]) -> int | None:
    """What ``shown`` is a rearranged copy of and what is in ``used``; None if there is none.

    ``shown`` itself if it is in ``used``. Otherwise it is followed back through steps that only put
    entries elsewhere, as local attention does to show in one picture what it multiplies by block by
    block; it must lead to one value.
    """
    makers = {number: step for step in self.steps for number in step.outputs}
    variable = self.reached_from(self.inputs)
    open_, found = {shown}, set()
    while open_:
      number = max(open_)
      open_.remove(number)
      if number in used:
        found.add(number)
        continue
      step = makers.get(number)
      if step is None or step.primitive.name not in _REARRANGING:
        return None
      open_.update(i for i in step.inputs if i in variable)
    return found.pop() if len(found) == 1 else None


def trace(function: Callable, *args: Any) -> tuple[Program, Any, Any]:
  """``function`` at arguments of these shapes; nothing is computed.

  Returns:
    The program, and the arguments and what is returned with numbers instead of arrays.

  >>> import jax.numpy as jnp
  >>> program, (x,), y = trace(lambda x: jnp.sin(x) * 2, jnp.ones(()))
  >>> float(program.run({x: jnp.pi / 2}, [y])[0])
  2.0
  """
  closed, shapes = jax.make_jaxpr(function, return_shape=True)(*args)
  writer = _Writer()
  inputs = [writer.new(v.aval) for v in closed.jaxpr.invars]
  outputs = writer.write(closed.jaxpr, closed.consts, inputs)
  program = Program(
    tuple(writer.steps), writer.constants, tuple(inputs), tuple(outputs), writer.shapes
  )
  number = jax.tree.unflatten
  return (
    program,
    number(jax.tree.structure(args), inputs),
    number(jax.tree.structure(shapes), outputs),
  )


class _Writer:
  """Writes a jaxpr and the calls in it as one list of steps."""

  def __init__(self) -> None:
    self.steps: list[Step] = []
    self.constants: dict[int, Any] = {}
    self.shapes: dict[int, jax.ShapeDtypeStruct] = {}

  def new(self, aval: Any) -> int:
    number = len(self.shapes)
    self.shapes[number] = jax.ShapeDtypeStruct(aval.shape, aval.dtype)
    return number

  def constant(self, value: Any, aval: Any) -> int:
    number = self.new(aval)
    self.constants[number] = value
    return number

  def write(self, jaxpr: core.Jaxpr, consts: Sequence[Any], inputs: Sequence[int]) -> list[int]:
    """Appends the steps of ``jaxpr`` and returns the numbers of its outputs."""
    number = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, value in zip(jaxpr.constvars, consts, strict=True):
      number[variable] = self.constant(value, variable.aval)

    def read(atom: Any) -> int:
      if isinstance(atom, core.Literal):
        return self.constant(atom.val, atom.aval)
      return number[atom]

    for equation in jaxpr.eqns:
      inputs = [read(atom) for atom in equation.invars]
      body = _body(equation)
      if body is None:
        outputs = [self.new(v.aval) for v in equation.outvars]
        step = Step(equation.primitive, equation.params, tuple(inputs), tuple(outputs))
        self.steps.append(step)
      else:
        outputs = self.write(*body, inputs)
      number.update(zip(equation.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _body(equation: Any) -> tuple[core.Jaxpr, Sequence[Any]] | None:
  """The jaxpr and constants of a call that can be written out; None of any other equation."""
  if equation.primitive.name not in _CALLS:
    return None
  jaxpr = equation.params.get('jaxpr', equation.params.get('call_jaxpr'))
  return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())
