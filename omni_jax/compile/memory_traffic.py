"""Bytes of main memory that the instructions of a compiled program read and write.

As in XLA's own analysis a fusion reads what it uses of its operands (a slice of a stack
of layers is not the stack) and writes its results; what lies in on-chip memory does not
count.
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

SLICING = ('dynamic-slice', 'gather', 'slice')
RESHAPING = ('bitcast', 'copy', 'reshape', 'convert', 'transpose')


def instruction_bytes(instruction: Instruction, computation: Computation) -> float:
  """Returns the bytes of an instruction that stands alone."""
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
    size = min(source.bytes, target.bytes)  # a slice reads what it writes
    return size * sum(shape.space == MAIN_MEMORY for shape in (source, target))
  if opcode == 'scatter':
    updates = operands[-(len(operands) - 1) // 2 :]
    return 2 * sum(main_memory_bytes(update.shapes) for update in updates)
  read = sum(main_memory_bytes(operand.shapes) for operand in operands)
  return read + main_memory_bytes(instruction.shapes)


class Use(NamedTuple):
  """An instruction that takes a value as one of its operands."""

  user: Instruction
  operand_index: int


class FusionBytes:
  """Counts the bytes of a module's fusions."""

  def __init__(self, module: Module):
    self._module = module
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
    return read + self._written(fused)

  def _shares(self, fused: Computation) -> list[float]:
    """Returns which share of each parameter of a fusion is read."""
    if fused.name not in self._read_shares:
      uses: dict[str, list[Use]] = {}
      for instruction in fused.instructions:
        for index, name in enumerate(instruction.operands):
          uses.setdefault(name, []).append(Use(instruction, index))
      parameters = fused.parameters()
      self._read_shares[fused.name] = [self._share(one, uses) for one in parameters]
    return self._read_shares[fused.name]

  def _share(self, value: Instruction, uses: dict[str, list[Use]]) -> float:
    """Returns which share of a value its users read, 1 at most."""
    share = sum(self._use_share(value, use, uses) for use in uses.get(value.name, ()))
    return min(share, 1.0)

  def _use_share(
    self, value: Instruction, use: Use, uses: dict[str, list[Use]]
  ) -> float:
    """Returns which share of a value one of its users reads."""
    user, index = use
    if user.opcode in SLICING and index == 0:
      whole = max(1, sum(shape.elements for shape in value.shapes))
      return user.shapes[0].elements / whole
    if user.opcode == 'dynamic-update-slice' and index == 0:
      return 0.0  # written in place
    if user.opcode == 'tuple' or collective_kind(user):
      return 0.0  # passed on, or read by the network
    if user.opcode in RESHAPING:
      return self._share(user, uses)
    if user.opcode == 'fusion':
      return self._shares(self._module.computations[user.called('calls')])[index]
    return 1.0

  def _written(self, fused: Computation) -> float:
    """Returns the bytes that a fusion writes."""
    return sum(self._result_bytes(result, fused) for result in _results(fused))

  def _result_bytes(self, result: Instruction, fused: Computation) -> float:
    """Returns the bytes that are written for one result of a fusion."""
    while result.opcode == 'bitcast':
      result = fused.by_name[result.operands[0]]
    if result.opcode == 'parameter' or collective_kind(result):
      return 0.0
    shape = result.shapes[0]
    if result.opcode == 'dynamic-update-slice':
      update = fused.by_name[result.operands[1]].shapes[0]
      return update.bytes if shape.space == MAIN_MEMORY else 0.0
    is_single = len(result.shapes) == 1 and shape.space == MAIN_MEMORY
    if result.opcode == 'fusion' and is_single:
      inner = self._written(self._module.computations[result.called('calls')])
      return min(result.bytes, inner or result.bytes)
    return main_memory_bytes(result.shapes)


def _results(fused: Computation) -> list[Instruction]:
  """Returns the instructions that a computation returns, each element of a tuple."""
  root = fused.root
  if root is None:
    return []
  if root.opcode != 'tuple':
    return [root]
  return [fused.by_name[name] for name in root.operands]
