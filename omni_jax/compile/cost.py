"""What a compiled program does in one run: FLOPs of products, bytes of memory, collectives; loops times their turns.

XLA's own `cost_analysis` counts the body of a loop once, whatever its trip count. Here as there a fusion reads what it
uses of its operands (a slice of a stack of layers is not the stack) and writes its results; what lies in on-chip memory
does not count. Products inside a Pallas kernel are those of its declared cost estimate.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
import math
import re
from typing import NamedTuple

from omni_jax.compile.hlo import (
  Computation,
  Instruction,
  loop_constants,
  Module,
  PLAIN,
  Shape,
  trip_count,
  unchanged,
)

FREE = {
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
COLLECTIVES = {
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'ragged-all-to-all',
  'collective-permute',
  'collective-broadcast',
}
FREE_CALLS = {
  'ConcatBitcast',
  'AllocateBuffer',
  'Sharding',
  'AssumeGatherIndicesInBound',
  'annotate_device_placement',
  'AsyncCollectiveStart',
  'AsyncCollectiveDone',
  'GatherScatterIndicesBitpacked',
  'PrepareAsyncCallStart',
  'PrepareAsyncCallDone',
}  # of the compiler's own, no work
SLICES = 'slices'
# Products of a Pallas kernel of jax that declares no estimate, by the beginning of its name: each of queries · keys.
# Blocks above the diagonal are left out. dq: scores, their gradient, dq; dkv: scores, their gradient, dk, dv.
KERNELS = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}
_ESTIMATE = re.compile(r'"?cost_estimate"?\s*:\s*\{([^}]*)\}')


class Work(NamedTuple):
  """An instruction of the program as it runs.

  Attributes:
    times: how often in a run.
    flops, bytes: of one time; bytes of main memory, read and written.
    source: where in the program it comes from (jax's path of names).
  """

  name: str
  times: int
  flops: float
  bytes: float
  source: str


class Transfer(NamedTuple):
  """A collective.

  Attributes:
    kind: opcode, without -start.
    payload: bytes that one device puts in.
    groups: XLA's words for who takes part, or SLICES for the same chip of every slice.
    awaited: of the Wait that ends it; '' if the program stands still until it is done.
  """

  name: str
  kind: str
  times: int
  payload: float
  groups: str
  source: str
  awaited: str


class Wait(NamedTuple):
  """The program goes on when the transfer of this name is done."""

  name: str


class Turns(NamedTuple):
  """A loop."""

  count: int
  body: list


class Cost(NamedTuple):
  """Of one device and one run of the program.

  Attributes:
    order: Work, Transfer, Wait and Turns as they are scheduled.
    endless: loops whose trip count is not known; they count as one turn.
    uncounted: custom calls without a cost estimate, by target, how many.
  """

  work: list[Work]
  transfers: list[Transfer]
  order: list
  endless: list[str]
  uncounted: Counter

  @property
  def flops(self) -> float:
    return sum(one.times * one.flops for one in self.work)

  @property
  def bytes(self) -> float:
    return sum(one.times * one.bytes for one in self.work)


def plain_bytes(shapes: tuple[Shape, ...]) -> float:
  return sum(shape.bytes for shape in shapes if shape.space == PLAIN)


def dot_flops(one: Instruction, where: Computation) -> float:
  """Of a dot or a ragged dot: 2 · result · contracted sizes."""
  lhs = where.by_name[one.operands[0]].shapes[0].dims
  if (
    one.opcode == 'ragged-dot'
  ):  # each row meets one group's matrix, in either direction
    rhs = where.by_name[one.operands[1]].shapes[0].dims
    return 2.0 * lhs[0] * lhs[1] * rhs[-1]
  contracted = 1
  for axis in one.numbers('lhs_contracting_dims'):
    contracted *= lhs[axis]
  return 2.0 * one.shapes[0].elements * contracted


def convolution_flops(one: Instruction, where: Computation) -> float:
  """As XLA counts: positions of the window that fall on padding or between dilated inputs are no work.

  The TPU compiler writes products as convolutions, batched ones with the batch as a dilated spatial axis.
  """
  left, right, out = re.split('_|->', one.attribute('dim_labels'))
  lhs = dict(zip(left, where.by_name[one.operands[0]].shapes[0].dims, strict=True))
  rhs = dict(zip(right, where.by_name[one.operands[1]].shapes[0].dims, strict=True))
  result = dict(zip(out, one.shapes[0].dims, strict=True))
  groups = [
    int(one.attribute(name) or 1)
    for name in ('feature_group_count', 'batch_group_count')
  ]
  total = 2.0 * (lhs['f'] // groups[0]) * result['f'] * (lhs['b'] // groups[1])
  window = dict(re.findall(r'(\w+)=([\w\-]+)', one.attribute('window')))
  axes = sorted(label for label in left if label.isdigit())
  for axis in axes:
    spatial = {name: text.split('x')[int(axis)] for name, text in window.items()}
    total *= _valid(lhs[axis], rhs[axis], result[axis], spatial)
  return total


def _valid(size: int, kernel: int, out: int, window: dict[str, str]) -> int:
  """Pairs (output, window position) that meet an input."""
  low = int(window.get('pad', '0_0').split('_')[0])
  stride, stretch, spread = (
    int(window.get(name, 1)) for name in ('stride', 'lhs_dilate', 'rhs_dilate')
  )
  if kernel == 1 and stretch == 1 and low == 0:
    return out
  count, last = 0, (size - 1) * stretch
  for k in range(kernel):
    begin = k * spread - low  # place in the stretched input of the first output
    if stretch == 1:
      first = max(0, -(begin // stride))
      count += max(0, min(out - 1, (last - begin) // stride) - first + 1)
    else:
      count += sum(
        0 <= begin + o * stride <= last and not (begin + o * stride) % stretch
        for o in range(out)
      )
  return count


def _attention_product(one: Instruction, where: Computation) -> float:
  """FLOPs of one product between queries and keys in the causal blocks of a splash attention kernel."""
  shapes = [where.by_name[name].shapes[0] for name in one.operands]
  blocks = next((shape.dims[-2:] for shape in shapes if shape.kind == 's8'), (1, 1))
  q, k = [
    shape.dims
    for shape in shapes
    if shape.kind in ('bf16', 'f32') and len(shape.dims) >= 3
  ][:2]
  run = sum(
    min(blocks[1], -(-(i + 1) * blocks[1] // blocks[0])) for i in range(blocks[0])
  )
  return 2.0 * math.prod(q) * k[-2] * run / math.prod(blocks)


class Walker:
  """Goes through a module as it runs."""

  def __init__(self, module: Module):
    self._module = module
    self._fused: dict[str, float] = {}
    self._reads: dict[str, list[float]] = {}
    self._order: list = []  # of the computation that is being walked
    self._awaited = ''  # of a transfer inside of the computation that is being walked
    self.cost = Cost([], [], self._order, [], Counter())

  def run(self) -> Cost:
    self._walk(self._module.entry, 1)
    return self.cost

  def _walk(
    self, where: Computation, times: int, known: Mapping[int, int] | None = None
  ) -> None:
    seen: set[str] = (
      set()
    )  # channels of collectives inside of fusions: one transfer has a start, parts and an end
    for one in where.instructions:
      kind = one.opcode.removesuffix('-start')
      if one.opcode.endswith('-done'):
        self._order.append(Wait(_origin(one, where)))
      if one.opcode in FREE or one.opcode.endswith(('-done', '-update')):
        continue
      if one.opcode == 'while':
        self._loop(where, one, times, known)
      elif one.opcode == 'conditional':
        self._branch(one, times)
      elif one.opcode in ('call', 'async-start'):
        self._awaited = one.name if one.opcode == 'async-start' else self._awaited
        self._walk(
          self._module.computations[one.called('to_apply') or one.called('calls')],
          times,
        )
        self._awaited = ''
      elif kind in COLLECTIVES:
        self._transfer(
          one, where, kind, times, one.name if one.opcode != kind else self._awaited
        )
      elif one.opcode in ('send', 'recv'):
        self._across(one, where, times)
      elif one.opcode == 'fusion':
        self._fusion(one, where, times, seen)
      else:
        flops, size = self._plain(one, where, times)
        self._add(one, times, flops, size)

  def _add(self, one: Instruction, times: int, flops: float, size: float) -> None:
    if flops or size:
      self.cost.work.append(Work(one.name, times, flops, size, source_of(one)))
      self._order.append(self.cost.work[-1])

  def _add_transfer(self, made: Transfer) -> None:
    self.cost.transfers.append(made)
    self._order.append(made)

  def _loop(
    self,
    where: Computation,
    one: Instruction,
    times: int,
    known: Mapping[int, int] | None,
  ) -> None:
    turns = trip_count(self._module, where, one, known)
    if turns is None:
      self.cost.endless.append(f'{one.name} ({source_of(one)})')
    body = self._module.computations[one.called('body')]
    state = unchanged(body, loop_constants(self._module, where, one, known))
    turns, outer, self._order = 1 if turns is None else turns, self._order, []
    self._walk(body, times * turns, state)
    outer.append(Turns(turns, self._order))
    self._order = outer

  def _branch(self, one: Instruction, times: int) -> None:
    """The branch with most work counts."""
    names = re.findall(r'%([\w.\-]+)', one.attribute('branch_computations'))
    names = names or [one.called('true_computation'), one.called('false_computation')]
    costs = []
    for name in names:
      branch = Walker(self._module)
      branch._walk(self._module.computations[name], times)
      costs.append(branch.cost)
    most = max(costs, key=lambda cost: (cost.flops, cost.bytes))
    self.cost.work.extend(most.work)
    self.cost.transfers.extend(most.transfers)
    self._order.extend(most.order)
    self.cost.endless.extend(most.endless)
    self.cost.uncounted.update(most.uncounted)

  def _transfer(
    self, one: Instruction, where: Computation, kind: str, times: int, awaited: str = ''
  ) -> None:
    operands = one.operands[:1] if kind == 'ragged-all-to-all' else one.operands
    payload = sum(where.by_name[name].bytes for name in operands)
    names = (
      ('source_target_pairs',) if kind == 'collective-permute' else ('replica_groups',)
    )
    groups = next((found for name in names if (found := one.attribute(name))), '{}')
    self._add_transfer(
      Transfer(one.name, kind, times, payload, groups, source_of(one), awaited)
    )
    size = sum(
      plain_bytes(where.by_name[name].shapes) for name in operands
    ) + plain_bytes(one.shapes[-1:])
    self._add(one, times, 0.0, size)

  def _across(self, one: Instruction, where: Computation, times: int) -> None:
    """Between slices the hosts do the collective: the program sends them what its chip puts in."""
    found = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
    if found and one.opcode == 'send':
      payload = where.by_name[one.operands[0]].bytes
      kind = found[1].lower().replace('_', '-')
      self._add_transfer(
        Transfer(one.name, kind, times, payload, SLICES, source_of(one), one.name)
      )

  def _fusion(
    self, one: Instruction, where: Computation, times: int, seen: set[str]
  ) -> None:
    inside = self._module.computations[one.called('calls')]
    starts, ends = (
      any(
        target in one.rest for one in inside.instructions if one.opcode == 'custom-call'
      )
      for target in ('AsyncCollectiveStart', 'AsyncCollectiveDone')
    )
    # Others carry on, beside work of their own, what began elsewhere: perhaps outside of the loop that they are in.
    if ends:
      self._order += [
        Wait(f'channel {channel}')
        for inner in inside.instructions
        if (channel := inner.attribute('channel_id'))
      ]
    for inner in (
      () if ends or 'async_collective_fusion' in inside.name else inside.instructions
    ):
      kind = inner.opcode.removesuffix('-start')
      channel = inner.attribute('channel_id')
      if kind in COLLECTIVES and (not channel or channel not in seen):
        seen.add(channel)
        scatters = kind == 'all-reduce' and any(
          user.opcode == 'dynamic-slice' and user.operands[0] == inner.name
          for user in inside.instructions
        )
        self._transfer(
          inner,
          inside,
          'reduce-scatter' if scatters else kind,
          times,
          f'channel {channel}' if starts else '',
        )
    flops = self._fused_flops(inside, times)
    self._add(
      one, times, flops, self._fusion_reads(one, where, inside) + self._writes(inside)
    )

  def _plain(
    self, one: Instruction, where: Computation, times: int
  ) -> tuple[float, float]:
    """(FLOPs, bytes) of an instruction that stands alone."""
    if one.opcode == 'custom-call':
      return self._custom(one, where, times)
    flops = self._flops(one, where, times)
    operands = [where.by_name[name] for name in one.operands if name in where.by_name]
    if one.opcode in ('dynamic-slice', 'slice', 'gather'):
      return flops, 2 * plain_bytes(one.shapes[-1:])
    if one.opcode == 'dynamic-update-slice':
      return flops, 2 * plain_bytes(operands[1].shapes)
    if one.opcode in ('copy-start', 'slice-start', 'dynamic-slice-start'):
      to, back = one.shapes[1], one.shapes[0]
      size = min(to.bytes, back.bytes)  # a slice reads what it writes
      return flops, size * sum(shape.space == PLAIN for shape in (to, back))
    if one.opcode == 'scatter':
      return flops, 2 * sum(
        plain_bytes(x.shapes) for x in operands[-(len(operands) - 1) // 2 :]
      )
    return flops, sum(plain_bytes(x.shapes) for x in operands) + plain_bytes(one.shapes)

  def _custom(
    self, one: Instruction, where: Computation, times: int
  ) -> tuple[float, float]:
    target = one.attribute('custom_call_target').strip('"')
    if target in FREE_CALLS:
      return 0.0, 0.0
    size = sum(
      plain_bytes(where.by_name[name].shapes) for name in one.operands
    ) + plain_bytes(one.shapes)
    if found := _ESTIMATE.search(one.rest):
      said = {
        name: float(value)
        for name, value in re.findall(r'"?(\w+)"?\s*:\s*"?(\d+)', found[1])
      }
      return said.get('flops', 0.0), said.get('bytes_accessed', size)
    if products := next(
      (n for name, n in KERNELS.items() if one.name.startswith(name)), 0
    ):
      return products * _attention_product(one, where), size
    self.cost.uncounted[target] += times
    return 0.0, size

  def _flops(self, one: Instruction, where: Computation, times: int) -> float:
    if one.opcode in ('dot', 'ragged-dot'):
      return dot_flops(one, where)
    if one.opcode == 'convolution':
      return convolution_flops(one, where)
    if one.opcode in ('fusion', 'call'):
      return self._fused_flops(
        self._module.computations[one.called('calls') or one.called('to_apply')], times
      )
    if one.opcode == 'custom-call':
      return self._custom(one, where, times)[0]
    return 0.0

  def _fused_flops(self, inside: Computation, times: int) -> float:
    if inside.name not in self._fused:
      self._fused[inside.name] = sum(
        self._flops(one, inside, times) for one in inside.instructions
      )
    return self._fused[inside.name]

  def _fusion_reads(
    self, one: Instruction, where: Computation, inside: Computation
  ) -> float:
    reads = self._read_parts(inside)
    return sum(
      min(part, 1.0) * plain_bytes(where.by_name[name].shapes)
      for name, part in zip(one.operands, reads, strict=True)
      if name in where.by_name
    )

  def _read_parts(self, inside: Computation) -> list[float]:
    """Which part of each parameter of a fusion is read."""
    if inside.name not in self._reads:
      users: dict[str, list[tuple[Instruction, int]]] = {}
      for one in inside.instructions:
        for place, name in enumerate(one.operands):
          users.setdefault(name, []).append((one, place))
      self._reads[inside.name] = [self._part(one, users) for one in inside.parameters()]
    return self._reads[inside.name]

  def _part(
    self, one: Instruction, users: dict[str, list[tuple[Instruction, int]]]
  ) -> float:
    whole, part = max(1, sum(shape.elements for shape in one.shapes)), 0.0
    for user, place in users.get(one.name, ()):
      taken = 1.0
      if user.opcode in ('dynamic-slice', 'gather', 'slice') and place == 0:
        taken = user.shapes[0].elements / whole
      elif (
        (user.opcode == 'dynamic-update-slice' and place == 0)
        or user.opcode == 'tuple'
        or (user.opcode.removesuffix('-start') in COLLECTIVES)
      ):
        taken = 0.0  # written in place, passed on, or read by the network
      elif user.opcode in ('bitcast', 'copy', 'reshape', 'convert', 'transpose'):
        taken = self._part(user, users)
      elif user.opcode == 'fusion':
        taken = self._read_parts(self._module.computations[user.called('calls')])[place]
      part += taken
    return min(part, 1.0)

  def _writes(self, inside: Computation) -> float:
    return sum(self._written(one, inside) for one in results_of(inside))

  def _written(self, one: Instruction, inside: Computation) -> float:
    while one.opcode == 'bitcast':
      one = inside.by_name[one.operands[0]]
    if one.opcode == 'parameter' or one.opcode.removesuffix('-start') in COLLECTIVES:
      return 0.0
    if one.opcode == 'dynamic-update-slice':
      update = inside.by_name[one.operands[1]].shapes[0]
      return update._replace(space=one.shapes[0].space).bytes * (
        one.shapes[0].space == PLAIN
      )
    if one.opcode == 'fusion' and len(one.shapes) == 1 and one.shapes[0].space == PLAIN:
      return min(
        one.bytes,
        self._writes(self._module.computations[one.called('calls')]) or one.bytes,
      )
    return plain_bytes(one.shapes)


def _origin(done: Instruction, where: Computation) -> str:
  """Name of what began it."""
  one = where.by_name[done.operands[0]]
  while one.opcode.endswith('-update'):
    one = where.by_name[one.operands[0]]
  return one.name


def results_of(inside: Computation) -> Iterator[Instruction]:
  """What a computation gives back, one instruction for each element of a tuple."""
  root = inside.root
  if root is None:
    return
  if root.opcode == 'tuple':
    yield from (inside.by_name[name] for name in root.operands)
  else:
    yield root


def source_of(one: Instruction) -> str:
  """jax's path of names, without the parts that every instruction has."""
  found = re.search(r'op_name="([^"]*)"', one.rest)
  return (
    re.sub(r'jit\(step\)/|closed_call/|jit\(main\)/', '', found[1]) if found else ''
  )


def cost_of(module: Module) -> Cost:
  """Everything that one run does on one device."""
  return Walker(module).run()
