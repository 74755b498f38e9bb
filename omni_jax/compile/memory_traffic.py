"""Counts the bytes of main memory that a program's instructions read and write.

As in XLA's own analysis, a fusion reads only the part of its operands that it uses (a
slice of a stack of layers, not the stack) and writes its results. Arrays in on-chip
memory do not count.
"""

from typing import NamedTuple

from omni_jax.compile.collectives import collective_kind
from omni_jax.compile.hlo import (
  Computation,
  Instruction,
  MAIN_MEMORY,
  main_memory_bytes,
  Module,
)
from omni_jax.compile.kernels import call_cost

# Instructions that write a part of their first operand in place, as the compiler's
# `aliasing_operands` say, and the index of the operand that they write there.
UPDATING = {'dynamic-update-slice': 1, 'scatter': -1}
SLICING = ('dynamic-slice', 'gather', 'slice')
RESHAPING = ('bitcast', 'copy', 'reshape', 'convert', 'transpose')


def instruction_bytes(instruction: Instruction, computation: Computation) -> float:
  """Returns the bytes that an instruction outside of a fusion reads and writes."""
  opcode = instruction.opcode
  if opcode == 'custom-call':
    return call_cost(instruction, computation).bytes
  operands = [
    computation.by_name[name]
    for name in instruction.operands
    if name in computation.by_name
  ]
  if opcode in SLICING:
    return 2 * main_memory_bytes(instruction.shapes[-1:])
  if opcode == 'dynamic-update-slice':
    return 2 * main_memory_bytes(operands[1].shapes)
  if opcode in ('copy-start', 'slice-start', 'dynamic-slice-start'):
    source, target = instruction.shapes[:2]
    size = min(source.bytes, target.bytes)  # a slice reads as much as it writes
    in_main_memory = [source.space, target.space].count(MAIN_MEMORY)
    return size * in_main_memory
  if opcode == 'scatter':
    updates = operands[-(len(operands) - 1) // 2 :]
    return 2 * _total_bytes(updates)
  return _total_bytes(operands) + main_memory_bytes(instruction.shapes)


def _total_bytes(values: list[Instruction]) -> float:
  """Returns the bytes of the results of instructions in main memory."""
  return sum(main_memory_bytes(value.shapes) for value in values)


class Use(NamedTuple):
  """The use of a value as an operand of an instruction.

  Attributes:
    user: instruction that uses the value.
    operand_index: index of the value among the user's operands.
  """

  user: Instruction
  operand_index: int


class FusionBytes:
  """Counts the bytes of a module's fusions; each fused computation is analysed once."""

  def __init__(self, module: Module):
    self._module = module
    # By the name of a fused computation, the share of each parameter that it reads.
    self._read_shares: dict[str, list[float]] = {}

  def of(self, fusion: Instruction, computation: Computation) -> float:
    """Returns the bytes that a fusion reads and writes."""
    fused = self._module.computations[fusion.called('calls')]
    read = 0.0
    shares = self._shares(fused)
    for name, share in zip(fusion.operands, shares, strict=True):
      if name in computation.by_name:
        size = main_memory_bytes(computation.by_name[name].shapes)
        read += min(share, 1.0) * size
    return read + self._written_bytes(fused)

  def _shares(self, fused: Computation) -> list[float]:
    """Returns the share of each parameter that a fused computation reads."""
    if fused.name not in self._read_shares:
      uses = _uses(fused)
      shares = [self._share(parameter, uses) for parameter in fused.parameters()]
      self._read_shares[fused.name] = shares
    return self._read_shares[fused.name]

  def _share(self, value: Instruction, uses: dict[str, list[Use]]) -> float:
    """Returns the share of a value that its users read, at most 1."""
    share = 0.0
    for use in uses.get(value.name, ()):
      share += self._use_share(value, use, uses)
    return min(share, 1.0)

  def _use_share(
    self, value: Instruction, use: Use, uses: dict[str, list[Use]]
  ) -> float:
    """Returns the share of a value that one of its users reads."""
    user, index = use
    if user.opcode in SLICING and index == 0:
      elements = sum(shape.elements for shape in value.shapes)
      return user.shapes[0].elements / max(1, elements)
    if user.opcode in UPDATING and index == 0:
      return 0.0  # written in place
    if user.opcode == 'tuple' or collective_kind(user):
      return 0.0  # returned unread, or read by the network
    if user.opcode in RESHAPING:
      return self._share(user, uses)
    if user.opcode == 'fusion':
      inner = self._module.computations[user.called('calls')]
      return self._shares(inner)[index]
    return 1.0

  def _written_bytes(self, fused: Computation) -> float:
    """Returns the bytes of main memory that a fused computation writes."""
    return sum(self._result_bytes(result, fused) for result in _results(fused))

  def _result_bytes(self, result: Instruction, fused: Computation) -> float:
    """Returns the bytes of main memory that one result of a fusion takes to write."""
    while result.opcode == 'bitcast':
      result = fused.by_name[result.operands[0]]
    if result.opcode == 'parameter' or collective_kind(result):
      return 0.0
    in_main_memory = result.shapes[0].space == MAIN_MEMORY
    if result.opcode in UPDATING:
      update = fused.by_name[result.operands[UPDATING[result.opcode]]].shapes[0]
      return update.bytes if in_main_memory else 0.0
    if result.opcode == 'fusion' and len(result.shapes) == 1 and in_main_memory:
      inner = self._module.computations[result.called('calls')]
      written = self._written_bytes(inner)
      return min(result.bytes, written or result.bytes)
    return main_memory_bytes(result.shapes)


def _uses(fused: Computation) -> dict[str, list[Use]]:
  """Returns the uses of every value of a computation, by the value's name."""
  uses: dict[str, list[Use]] = {}
  for instruction in fused.instructions:
    for index, name in enumerate(instruction.operands):
      uses.setdefault(name, []).append(Use(instruction, index))
  return uses


def _results(fused: Computation) -> list[Instruction]:
  """Returns the instructions whose results a computation returns, one or a tuple."""
  root = fused.root
  if root is None:
    return []
  if root.opcode != 'tuple':
    return [root]
  return fused.operands(root)
