"""Counts the FLOPs, the bytes of memory and the collectives of a compiled program.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count. Here
the body counts as often as it runs. The FLOPs of a Pallas kernel are those of its
declared cost estimate.
"""

from collections import Counter
from collections.abc import Mapping
import re
from typing import NamedTuple

from omni_jax.compile.collectives import (
  collective_bytes,
  collective_kind,
  collective_transfer,
  fused_collectives,
  fused_waits,
  slice_transfer,
  start_name,
)
from omni_jax.compile.hlo import Computation, Instruction, Module
from omni_jax.compile.loops import loop_constants, trip_count, unchanged
from omni_jax.compile.memory_traffic import FusionBytes, instruction_bytes
from omni_jax.compile.product_flops import ProductFlops
from omni_jax.compile.schedule import Loop, Transfer, Wait, Work

# Instructions that do no work.
FREE_OPCODES = {
  'parameter',
  'constant',
  'get-tuple-element',
  'tuple',
  'bitcast',
  'after-all',
  'partition-id',
  'replica-id',
  'opt-barrier',
  'add-dependency',
  'domain',
}


class Cost(NamedTuple):
  """The cost of one run of a program on one device.

  Attributes:
    work: instructions that the core executes.
    transfers: collectives.
    order: schedule, of Work, Transfer, Wait and Loop.
    unknown_loops: loops whose trip count is not known; they count as one iteration.
    uncounted: number of custom calls without a cost estimate, by target.
  """

  work: list[Work]
  transfers: list[Transfer]
  order: list
  unknown_loops: list[str]
  uncounted: Counter

  @property
  def flops(self) -> float:
    """FLOPs of one run."""
    return sum(work.times * work.flops for work in self.work)

  @property
  def bytes(self) -> float:
    """Bytes of main memory that are read and written in one run."""
    return sum(work.times * work.bytes for work in self.work)


def cost_of(module: Module) -> Cost:
  """Returns the cost of one run of a program on one device."""
  return Walker(module).walk(module.entry, 1)


class Walker:
  """Walks through the computations of a module in the order in which they run."""

  def __init__(self, module: Module):
    self._module = module
    self._products = ProductFlops(module)
    self._fusions = FusionBytes(module)
    # Schedule of the computation that is being walked.
    self._order: list = []
    # Name of the async-start whose computation is being walked.
    self._awaited = ''
    self._cost = Cost([], [], self._order, [], self._products.uncounted)

  def walk(self, computation: Computation, times: int) -> Cost:
    """Returns the cost of running a computation `times` times."""
    self._walk(computation, times)
    return self._cost

  def _walk(
    self, computation: Computation, times: int, known: Mapping[int, int] | None = None
  ) -> None:
    """Adds the instructions of a computation.

    Args:
      computation: computation to walk through.
      times: how often it runs in one run of the program.
      known: constants in its parameter, a tuple, by index.
    """
    # Channels of collectives inside fusions: each has a start, other parts and an end.
    seen: set[str] = set()
    for instruction in computation.instructions:
      opcode = instruction.opcode
      if opcode.endswith('-done'):
        wait_name = start_name(instruction, computation)
        self._order.append(Wait(wait_name))
      if opcode in FREE_OPCODES or opcode.endswith(('-done', '-update')):
        continue
      if opcode == 'while':
        self._loop(instruction, computation, times, known)
      elif opcode == 'conditional':
        self._branch(instruction, times)
      elif opcode in ('call', 'async-start'):
        self._call(instruction, times)
      elif kind := collective_kind(instruction):
        is_start = opcode != kind
        wait_name = instruction.name if is_start else self._awaited
        self._collective(instruction, computation, kind, times, wait_name)
      elif opcode in ('send', 'recv'):
        if transfer := slice_transfer(instruction, computation, times):
          self._add_transfer(transfer)
      elif opcode == 'fusion':
        self._fusion(instruction, computation, times, seen)
      else:
        flops = self._products.of(instruction, computation, times)
        size = instruction_bytes(instruction, computation)
        self._add_work(instruction, times, flops, size)

  def _add_work(
    self, instruction: Instruction, times: int, flops: float, size: float
  ) -> None:
    if flops or size:
      work = Work(instruction.name, times, flops, size, instruction.source)
      self._cost.work.append(work)
      self._order.append(work)

  def _add_transfer(self, transfer: Transfer) -> None:
    self._cost.transfers.append(transfer)
    self._order.append(transfer)

  def _loop(
    self,
    loop: Instruction,
    computation: Computation,
    times: int,
    known: Mapping[int, int] | None,
  ) -> None:
    """Adds the body of a loop, as often as it runs."""
    count = trip_count(self._module, computation, loop, known)
    if count is None:
      self._cost.unknown_loops.append(f'{loop.name} ({loop.source})')
      count = 1
    body = self._module.computations[loop.called('body')]
    constants = loop_constants(self._module, computation, loop, known)
    outer = self._order
    self._order = []
    self._walk(body, times * count, unchanged(body, constants))
    outer.append(Loop(count, self._order))
    self._order = outer

  def _branch(self, conditional: Instruction, times: int) -> None:
    """Adds the branch with the most FLOPs or, if these are equal, the most bytes."""
    listed = conditional.attribute('branch_computations')
    names = re.findall(r'%([\w.\-]+)', listed)
    if not names:
      names.append(conditional.called('true_computation'))
      names.append(conditional.called('false_computation'))
    costs = []
    for name in names:
      branch = self._module.computations[name]
      costs.append(Walker(self._module).walk(branch, times))
    largest = max(costs, key=lambda cost: (cost.flops, cost.bytes))
    self._cost.work.extend(largest.work)
    self._cost.transfers.extend(largest.transfers)
    self._order.extend(largest.order)
    self._cost.unknown_loops.extend(largest.unknown_loops)
    self._cost.uncounted.update(largest.uncounted)

  def _call(self, call: Instruction, times: int) -> None:
    """Adds the computation that is called."""
    if call.opcode == 'async-start':
      self._awaited = call.name
    called = call.called('to_apply') or call.called('calls')
    self._walk(self._module.computations[called], times)
    self._awaited = ''

  def _collective(
    self,
    collective: Instruction,
    computation: Computation,
    kind: str,
    times: int,
    wait_name: str,
  ) -> None:
    """Adds a collective, and the bytes of memory that it reads and writes."""
    transfer = collective_transfer(collective, computation, kind, times, wait_name)
    self._add_transfer(transfer)
    self._add_work(collective, times, 0.0, collective_bytes(collective, computation))

  def _fusion(
    self, fusion: Instruction, computation: Computation, times: int, seen: set[str]
  ) -> None:
    """Adds a fusion and the collectives inside it."""
    fused = self._module.computations[fusion.called('calls')]
    self._order.extend(fused_waits(fused))
    for inner in fused_collectives(fused, seen):
      self._collective(inner.instruction, fused, inner.kind, times, inner.wait_name)
    flops = self._products.of(fusion, computation, times)
    self._add_work(fusion, times, flops, self._fusions.of(fusion, computation))
