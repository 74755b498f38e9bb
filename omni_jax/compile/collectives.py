"""Finds a program's collectives, what they send, and where the program waits for them."""

from collections.abc import Iterator
import re
from typing import NamedTuple

from omni_jax.compile.hlo import Computation, Instruction, main_memory_bytes
from omni_jax.compile.schedule import Transfer, Wait

COLLECTIVES = {
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
}
# Stands for the replica groups of a transfer between slices: the same chip of each.
SLICES = 'slices'
_MEGASCALE = re.compile(r'_xla_megascale_transfer_type="(\w+)"')


def collective_kind(instruction: Instruction) -> str:
  """Returns the kind of a collective, or '' for any other instruction."""
  kind = instruction.opcode.removesuffix('-start')
  return kind if kind in COLLECTIVES else ''


def _sent_operands(
  collective: Instruction, computation: Computation
) -> list[Instruction]:
  """Returns the operands whose values are sent; others only describe the routing."""
  operands = computation.operands(collective)
  if collective_kind(collective) == 'ragged-all-to-all':
    return operands[:1]
  return operands


def collective_transfer(
  collective: Instruction,
  computation: Computation,
  kind: str,
  times: int,
  wait_name: str,
) -> Transfer:
  """Returns the transfer of a collective.

  Args:
    collective: instruction that starts it.
    computation: computation that holds the instruction.
    kind: what it does; a fusion may turn an all-reduce into a reduce-scatter.
    times: how often it runs in one run of the program.
    wait_name: name of the Wait that ends it, or ''.
  """
  payload = 0.0
  for operand in _sent_operands(collective, computation):
    payload += operand.bytes
  if kind == 'collective-permute':
    groups = collective.attribute('source_target_pairs')
  else:
    groups = collective.attribute('replica_groups')
  return Transfer(
    collective.name, kind, times, payload, groups or '{}', collective.source, wait_name
  )


def collective_bytes(collective: Instruction, computation: Computation) -> float:
  """Returns the bytes of main memory that a collective reads and writes."""
  read = 0.0
  for operand in _sent_operands(collective, computation):
    read += main_memory_bytes(operand.shapes)
  return read + main_memory_bytes(collective.shapes[-1:])


def slice_transfer(
  instruction: Instruction, computation: Computation, times: int
) -> Transfer | None:
  """Returns the transfer between slices that a send starts, or None.

  The hosts run such a collective; the program only sends them the payload of the chip.
  """
  match = _MEGASCALE.search(instruction.rest)
  if not match or instruction.opcode != 'send':
    return None
  payload = computation.by_name[instruction.operands[0]].bytes
  kind = match[1].lower().replace('_', '-')
  name = instruction.name
  return Transfer(name, kind, times, payload, SLICES, instruction.source, name)


def start_name(done: Instruction, computation: Computation) -> str:
  """Returns the name of the start instruction of the operation that `done` ends."""
  start = computation.by_name[done.operands[0]]
  while start.opcode.endswith('-update'):
    start = computation.by_name[start.operands[0]]
  return start.name


class FusedCollective(NamedTuple):
  """A collective inside a fusion.

  Attributes:
    instruction: the collective.
    kind: what it does together with the instructions around it.
    wait_name: name of the Wait that ends it, or ''.
  """

  instruction: Instruction
  kind: str
  wait_name: str


def fused_collectives(fusion: Computation, seen: set[str]) -> Iterator[FusedCollective]:
  """Yields the collectives that start in a fusion.

  Fusions that end a collective, or only continue one that started elsewhere, yield
  nothing.

  Args:
    fusion: computation of the fusion.
    seen: channels of collectives that have already started; new ones are added.
  """
  is_done = _has_custom_call(fusion, 'AsyncCollectiveDone')
  if is_done or 'async_collective_fusion' in fusion.name:
    return
  is_start = _has_custom_call(fusion, 'AsyncCollectiveStart')
  for instruction in fusion.instructions:
    kind = collective_kind(instruction)
    channel = instruction.attribute('channel_id')
    if not kind or channel in seen:
      continue
    if channel:
      seen.add(channel)
    if kind == 'all-reduce' and _is_sliced(instruction, fusion):
      kind = 'reduce-scatter'
    wait_name = f'channel {channel}' if is_start else ''
    yield FusedCollective(instruction, kind, wait_name)


def fused_waits(fusion: Computation) -> Iterator[Wait]:
  """Yields the waits of a fusion that ends a collective; none for other fusions."""
  if not _has_custom_call(fusion, 'AsyncCollectiveDone'):
    return
  for instruction in fusion.instructions:
    if channel := instruction.attribute('channel_id'):
      yield Wait(f'channel {channel}')


def _has_custom_call(fusion: Computation, target: str) -> bool:
  """Returns whether a fusion has a custom call to this target."""
  return any(
    instruction.opcode == 'custom-call' and target in instruction.rest
    for instruction in fusion.instructions
  )


def _is_sliced(collective: Instruction, fusion: Computation) -> bool:
  """Returns whether a dynamic slice is taken of the collective's result."""
  return any(
    user.opcode == 'dynamic-slice' and user.operands[0] == collective.name
    for user in fusion.instructions
  )
