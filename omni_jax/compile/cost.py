"""What one run of a compiled program costs: FLOPs, bytes of memory and collectives.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count; here
it counts as often as it runs. Products inside a Pallas kernel are those of its declared
cost estimate.
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
  """What one run of the program costs on one device.

  Attributes:
    order: Work, Transfer, Wait and Loop as they are scheduled.
    endless: loops whose trip count is not known; they count as one iteration.
    uncounted: custom calls without a cost estimate, by target, how many.
  """

  work: list[Work]
  transfers: list[Transfer]
  order: list
  endless: list[str]
  uncounted: Counter

  @property
  def flops(self) -> float:
    return sum(work.times * work.flops for work in self.work)

  @property
  def bytes(self) -> float:
    return sum(work.times * work.bytes for work in self.work)


def cost_of(module: Module) -> Cost:
  """Returns what one run of a program costs on one device."""
  return Walker(module).walk(module.entry, 1)


class Walker:
  """Goes through the computations of a module as they run."""

  def __init__(self, module: Module):
    self._module = module
    self._products = ProductFlops(module)
    self._fusions = FusionBytes(module)
    self._order: list = []  # of the computation that is being walked
    self._awaited = ''  # name of the async-start whose computation is being walked
    self._cost = Cost([], [], self._order, [], self._products.uncounted)

  def walk(self, computation: Computation, times: int) -> Cost:
    """Returns what a computation costs that runs so often."""
    self._walk(computation, times)
    return self._cost

  def _walk(
    self, computation: Computation, times: int, known: Mapping[int, int] | None = None
  ) -> None:
    # Channels of collectives inside of fusions: one has a start, parts and an end.
    seen: set[str] = set()
    for instruction in computation.instructions:
      opcode = instruction.opcode
      if opcode.endswith('-done'):
        self._order.append(Wait(start_name(instruction, computation)))
      if opcode in FREE_OPCODES or opcode.endswith(('-done', '-update')):
        continue
      if opcode == 'while':
        self._loop(instruction, computation, times, known)
      elif opcode == 'conditional':
        self._branch(instruction, times)
      elif opcode in ('call', 'async-start'):
        self._call(instruction, times)
      elif kind := collective_kind(instruction):
        awaited = instruction.name if opcode != kind else self._awaited
        self._collective(instruction, computation, kind, times, awaited)
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
    count = trip_count(self._module, computation, loop, known)
    if count is None:
      self._cost.endless.append(f'{loop.name} ({loop.source})')
      count = 1
    body = self._module.computations[loop.called('body')]
    constants = loop_constants(self._module, computation, loop, known)
    outer = self._order
    self._order = []
    self._walk(body, times * count, unchanged(body, constants))
    outer.append(Loop(count, self._order))
    self._order = outer

  def _branch(self, conditional: Instruction, times: int) -> None:
    """Adds the branch with most work."""
    listed = conditional.attribute('branch_computations')
    names = re.findall(r'%([\w.\-]+)', listed) or [
      conditional.called('true_computation'),
      conditional.called('false_computation'),
    ]
    costs = [
      Walker(self._module).walk(self._module.computations[name], times)
      for name in names
    ]
    most = max(costs, key=lambda cost: (cost.flops, cost.bytes))
    self._cost.work.extend(most.work)
    self._cost.transfers.extend(most.transfers)
    self._order.extend(most.order)
    self._cost.endless.extend(most.endless)
    self._cost.uncounted.update(most.uncounted)

  def _call(self, call: Instruction, times: int) -> None:
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
    awaited: str,
  ) -> None:
    transfer = collective_transfer(collective, computation, kind, times, awaited)
    self._add_transfer(transfer)
    self._add_work(collective, times, 0.0, collective_bytes(collective, computation))

  def _fusion(
    self, fusion: Instruction, computation: Computation, times: int, seen: set[str]
  ) -> None:
    fused = self._module.computations[fusion.called('calls')]
    self._order.extend(fused_waits(fused))
    for inner in fused_collectives(fused, seen):
      self._collective(inner.instruction, fused, inner.kind, times, inner.awaited)
    flops = self._products.of(fusion, computation, times)
    self._add_work(fusion, times, flops, self._fusions.of(fusion, computation))
