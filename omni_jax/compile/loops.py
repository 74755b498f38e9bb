"""Finds out how often the loops of a compiled program run."""

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
  """Returns how often the body of a `while` runs, or None if that is not known.

  The count is the compiler's where it gives one. Otherwise it follows from a condition
  `counter < limit`. A loop whose end depends on its data has no known count.

  Args:
    module: program that holds the loop.
    caller: computation that holds the loop.
    loop: the `while` instruction.
    known: constants in the caller's parameter by index, where the caller is itself the
      body of a loop.
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
  """Returns the constants in the initial state of a loop by index; see `trip_count`."""
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
  """Returns the constants of the state that the body of a loop does not change."""
  if body.root is None or body.root.opcode != 'tuple':
    return {}
  return {index: number for index, number in state.items() if _passes_on(body, index)}


def _passes_on(body: Computation, index: int) -> bool:
  """Returns whether the body returns this element of the state unchanged."""
  assert body.root is not None
  element = _original(body, body.root.operands[index])
  if element is None or element.opcode != 'get-tuple-element':
    return False
  return int(element.attribute('index')) == index


def _comparison(module: Module, condition: Computation) -> Instruction | None:
  """Returns the `counter < limit` that a condition ends with, or None.

  Its operands are names in the condition, also where the comparison is inside a fusion.
  """
  root = condition.root
  if root is not None and root.opcode == 'fusion':
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
  """Returns the operands of an instruction in a fusion, as names outside the fusion.

  An operand that is not a parameter of the fusion keeps its name.
  """
  fused = module.computations[fusion.called('calls')]
  names = []
  for operand in fused.operands(inner):
    name = operand.name
    if operand.opcode == 'parameter':
      name = fusion.operands[int(operand.inside)]
    names.append(name)
  return tuple(names)


def _original(computation: Computation, name: str) -> Instruction | None:
  """Returns the instruction that a name refers to, after following copies and bitcasts."""
  instruction = computation.by_name.get(name)
  while instruction is not None and instruction.opcode in ('copy', 'bitcast'):
    instruction = computation.by_name.get(instruction.operands[0])
  return instruction


def constant(
  computation: Computation, name: str, known: Mapping[int, int] | None = None
) -> int | None:
  """Returns the value of an instruction if it is a known integer, else None.

  Args:
    computation: computation that holds the instruction.
    name: name of the instruction.
    known: integers in the computation's only parameter, a tuple, by index.
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
  if not re.fullmatch(r'-?\d+', instruction.inside):
    return None
  return int(instruction.inside)


def _increment(body: Computation, index: int, state: Mapping[int, int]) -> int | None:
  """Returns what an iteration adds to this element of the state, or None.

  A fusion is taken for the increment by 1 that JAX's loops have.
  """
  if body.root is None or body.root.opcode != 'tuple':
    return None
  result = _original(body, body.root.operands[index])
  if result is None:
    return None
  if result.opcode == 'fusion':  # the addition, fused with users of the counter
    return 1
  if result.opcode != 'add':
    return None
  others = {i: number for i, number in state.items() if i != index}
  for name in result.operands:
    number = constant(body, name, others)
    if number is not None:
      return number
  return None
