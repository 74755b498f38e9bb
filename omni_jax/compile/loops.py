"""How often the loops of a compiled program run."""

from collections.abc import Mapping
import re

from omni_jax.compile.hlo import Computation, Instruction, Module

_KNOWN_TRIP_COUNT = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def trip_count(
  module: Module,
  caller: Computation,
  loop: Instruction,
  known: Mapping[int, int] | None = None,
) -> int | None:
  """Returns how often the body of a `while` runs.

  It is what the compiler says, or follows from a condition `counter < limit`. None
  where neither tells, such as a loop that runs until its data say so.

  Args:
    known: constants in the state of the loop whose body the caller is.
  """
  if match := _KNOWN_TRIP_COUNT.search(loop.rest):
    return int(match[1])
  condition = module.computations[loop.called('condition')]
  body = module.computations[loop.called('body')]
  comparison = _comparison(module, condition)
  if comparison is None or body.root is None:
    return None
  state = loop_constants(module, caller, loop, known)
  counter = _original(condition, comparison.operands[0])
  limit = constant(condition, comparison.operands[1], state)
  if counter is None or counter.opcode != 'get-tuple-element' or limit is None:
    return None
  index = int(counter.attribute('index'))
  increment = _increment(body, index, state)
  if index not in state or not increment:
    return None
  return max(0, -(-(limit - state[index]) // increment))


def loop_constants(
  module: Module,
  caller: Computation,
  loop: Instruction,
  known: Mapping[int, int] | None = None,
) -> dict[int, int]:
  """Returns the constants in the state that a loop starts with, by index."""
  start = caller.by_name.get(loop.operands[0])
  if start is None or start.opcode != 'tuple':
    return {}
  constants = {}
  for index, name in enumerate(start.operands):
    number = constant(caller, name, known)
    if number is not None:
      constants[index] = number
  return constants


def unchanged(body: Computation, state: Mapping[int, int]) -> dict[int, int]:
  """Returns those constants of the state that an iteration passes on as they are."""
  if body.root is None or body.root.opcode != 'tuple':
    return {}
  return {index: number for index, number in state.items() if _passes_on(body, index)}


def _passes_on(body: Computation, index: int) -> bool:
  """Whether the body returns this element of the state as it was given."""
  element = _original(body, body.root.operands[index])
  return (
    element is not None
    and element.opcode == 'get-tuple-element'
    and int(element.attribute('index')) == index
  )


def _comparison(module: Module, condition: Computation) -> Instruction | None:
  """Returns the `counter < limit` that a condition ends with, if it does."""
  root = condition.root
  if root is not None and root.opcode == 'fusion':  # of the comparison alone
    inner = module.computations[root.called('calls')].root
    if inner is not None:
      inner = inner._replace(operands=_outer_operands(module, root, inner))
    root = inner
  if root is None or root.opcode != 'compare' or 'direction=LT' not in root.rest:
    return None
  return root


def _outer_operands(
  module: Module, fusion: Instruction, inner: Instruction
) -> tuple[str, ...]:
  """Returns the fusion's operands in the order of the inner instruction's."""
  fused = module.computations[fusion.called('calls')]
  names = []
  for name in inner.operands:
    operand = fused.by_name[name]
    is_parameter = operand.opcode == 'parameter'
    names.append(fusion.operands[int(operand.inside)] if is_parameter else operand.name)
  return tuple(names)


def _original(computation: Computation, name: str) -> Instruction | None:
  """Returns the instruction behind copies and bitcasts."""
  instruction = computation.by_name.get(name)
  while instruction is not None and instruction.opcode in ('copy', 'bitcast'):
    instruction = computation.by_name.get(instruction.operands[0])
  return instruction


def constant(
  computation: Computation, name: str, known: Mapping[int, int] | None = None
) -> int | None:
  """Returns the integer that an instruction is, or None.

  Args:
    known: integers that the computation's only parameter, a tuple, is known to hold.
  """
  instruction = _original(computation, name)
  if instruction is None:
    return None
  if instruction.opcode == 'get-tuple-element' and known:
    state = computation.by_name[instruction.operands[0]]
    if state.opcode == 'parameter':
      return known.get(int(instruction.attribute('index')))
  if instruction.opcode != 'constant':
    return None
  is_integer = re.fullmatch(r'-?\d+', instruction.inside)
  return int(instruction.inside) if is_integer else None


def _increment(body: Computation, index: int, state: Mapping[int, int]) -> int | None:
  """Returns what an iteration adds to this element of the state, or None."""
  if body.root.opcode != 'tuple':
    return None
  result = _original(body, body.root.operands[index])
  if result is None:
    return None
  if result.opcode == 'fusion':  # of the addition and what only looks at the counter
    return 1
  if result.opcode != 'add':
    return None
  others = {i: number for i, number in state.items() if i != index}
  for name in result.operands:
    number = constant(body, name, others)
    if number is not None:
      return number
  return None
