"""Reads the text of a compiled program: computations, their instructions, shapes, trip counts of loops.

One pass over the lines, with no regular expression over more than one of them: such texts reach 100 MB.
"""

from collections.abc import Mapping
import math
import re
from typing import NamedTuple

PLAIN = 0  # number of main memory; VMEM, SMEM and semaphores have others
BITS = {
  'pred': 8,
  's2': 2,
  'u2': 2,
  's4': 4,
  'u4': 4,
  's8': 8,
  'u8': 8,
  's16': 16,
  'u16': 16,
  's32': 32,
  'u32': 32,
  's64': 64,
  'u64': 64,
  'bf16': 16,
  'f16': 16,
  'f32': 32,
  'f64': 64,
  'c64': 64,
  'c128': 128,
  'f4e2m1fn': 4,
  'f8e4m3fn': 8,
  'f8e5m2': 8,
  'f8e4m3': 8,
  'f8e4m3b11fnuz': 8,
  'f8e4m3fnuz': 8,
  'f8e5m2fnuz': 8,
  'f8e8m0fnu': 8,
  'token': 0,
  'opaque': 0,
}
_ARRAY = re.compile(r'([a-z]\w*)\[([\d,<=]*)\](?:\{([^}]*)\})?')
_NAME = re.compile(r'%([\w.\-]+)')


class Shape(NamedTuple):
  """One array; `space` is XLA's number of the memory that it lies in, 0 for main memory."""

  kind: str
  dims: tuple[int, ...]
  space: int

  @property
  def elements(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    return self.elements * BITS[self.kind] / 8


class Instruction(NamedTuple):
  """`name = shapes opcode(operands), attributes`. Shapes are those of a flattened tuple.

  Attributes:
    inside: text between the parentheses.
    rest: text behind them.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  inside: str
  rest: str

  def attribute(self, name: str) -> str:
    """Text of `name=…` up to the next comma outside of braces; '' where there is none."""
    begin = self.rest.find(f'{name}=')
    while begin > 0 and self.rest[begin - 1] not in ' ,':
      begin = self.rest.find(f'{name}=', begin + 1)
    if begin < 0:
      return ''
    depth, i = 0, begin + len(name) + 1
    start = i
    while i < len(self.rest):
      c = self.rest[i]
      if c in '{[(':
        depth += 1
      elif c in '}])':
        depth -= 1
      elif c == ',' and depth == 0:
        break
      i += 1
    return self.rest[start:i]

  def called(self, name: str) -> str:
    """The computation of `name=%computation`; '' where there is none."""
    found = self.attribute(name)
    return found[1:].split(' ')[0] if found.startswith('%') else ''

  def numbers(self, name: str) -> tuple[int, ...]:
    """Of `name={1,2}`."""
    return tuple(int(n) for n in re.findall(r'\d+', self.attribute(name)))

  @property
  def bytes(self) -> float:
    return sum(shape.bytes for shape in self.shapes)


class Computation:
  """Instructions in the order in which they run, where the program is scheduled."""

  def __init__(self, name: str):
    self.name = name
    self.instructions: list[Instruction] = []
    self.by_name: dict[str, Instruction] = {}
    self.root: Instruction | None = None

  def add(self, instruction: Instruction, root: bool) -> None:
    self.instructions.append(instruction)
    self.by_name[instruction.name] = instruction
    if root:
      self.root = instruction

  def parameters(self) -> list[Instruction]:
    found = [one for one in self.instructions if one.opcode == 'parameter']
    return sorted(found, key=lambda one: int(one.inside))


class Module(NamedTuple):
  computations: dict[str, Computation]
  entry: Computation


def parse_shapes(text: str) -> tuple[Shape, ...]:
  """Of `f32[2,3]{1,0:T(8,128)S(1)}` or of a tuple of such."""
  made = []
  for kind, dims, layout in _ARRAY.findall(text):
    if kind not in BITS:
      continue
    at = layout.find('S(')
    sizes = tuple(int(n.lstrip('<=')) for n in dims.split(',') if n)
    made.append(
      Shape(kind, sizes, int(layout[at + 2 : layout.index(')', at)]) if at >= 0 else 0)
    )
  return tuple(made)


def _closing(text: str, begin: int) -> int:
  """Index of the parenthesis that closes the one at `begin`; quoted text is passed over."""
  depth, i = 0, begin
  while i < len(text):
    c = text[i]
    if c == '(':
      depth += 1
    elif c == ')':
      depth -= 1
      if not depth:
        return i
    elif c == '"':
      i += 1
      while text[i] != '"':
        i += 2 if text[i] == '\\' else 1
    i += 1
  return len(text)


def parse_instruction(line: str) -> tuple[Instruction, bool] | None:
  """(instruction, whether it is the root) of a line; None of a line that is none."""
  line = line.strip()
  root = line.startswith('ROOT ')
  name, equals, after = line.removeprefix('ROOT ').partition(' = ')
  if not equals or not name.startswith('%'):
    return None
  stop = _closing(after, 0) + 1 if after.startswith('(') else after.index(' ')
  shapes, after = parse_shapes(after[:stop]), after[stop:].lstrip()
  opcode, _, _ = after.partition('(')
  stop = _closing(after, len(opcode))
  inside = after[len(opcode) + 1 : stop]
  operands = () if opcode in ('constant', 'parameter') else tuple(_NAME.findall(inside))
  return Instruction(
    name[1:], opcode, shapes, operands, inside, after[stop + 1 :]
  ), root


def parse(text: str) -> Module:
  """All computations of a program.

  A line `%name (…) -> … {` begins one, a line `}` ends it. An instruction begins with its name behind two spaces; lines
  of another form carry on the one before (metadata that somebody gave a kernel may hold line breaks).
  """
  computations, current, entry, pending = {}, None, None, ''
  for line in text.splitlines():
    if current is None:
      if line.endswith('{') and ') -> ' in line:
        found = _NAME.search(line)
        if found:
          current = computations[found[1]] = Computation(found[1])
          entry = current if line.startswith('ENTRY') else entry
    elif (
      end := line == '}' or line.startswith('}, execution_thread=')
    ) or line.startswith(('  %', '  ROOT %')):
      if pending and (made := parse_instruction(pending)):
        current.add(*made)
      pending, current = ('', None) if end else (line, current)
    else:
      pending += line
  if entry is None:
    raise ValueError(f'no ENTRY computation in {len(text)} characters of HLO')
  return Module(computations, entry)


_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


def trip_count(
  module: Module,
  caller: Computation,
  loop: Instruction,
  known: Mapping[int, int] | None = None,
) -> int | None:
  """How often the body of a `while` runs: what the compiler says, or from a condition `counter < limit`.

  None where neither tells, such as a loop that runs until its data say so.

  Args:
    known: constants in the state of the loop whose body the caller is.
  """
  if found := _TRIPS.search(loop.rest):
    return int(found[1])
  condition, body = (
    module.computations[loop.called(name)] for name in ('condition', 'body')
  )
  state = loop_constants(module, caller, loop, known)
  root = condition.root
  if root is not None and root.opcode == 'fusion':  # of the comparison alone
    inner = module.computations[root.called('calls')].root
    root = (
      inner._replace(operands=_outer(module, root, inner))
      if inner is not None
      else None
    )
  if (
    root is None
    or root.opcode != 'compare'
    or 'direction=LT' not in root.rest
    or body.root is None
  ):
    return None
  counter = _source(condition, root.operands[0])
  limit = constant(condition, root.operands[1], state)
  if counter is None or counter.opcode != 'get-tuple-element' or limit is None:
    return None
  index = int(counter.attribute('index'))
  step = _step(body, index, state)
  if index not in state or not step:
    return None
  return max(0, -(-(limit - state[index]) // step))


def loop_constants(
  module: Module,
  caller: Computation,
  loop: Instruction,
  known: Mapping[int, int] | None = None,
) -> dict[int, int]:
  """Numbers in the state that a loop starts with, by index."""
  start = caller.by_name.get(loop.operands[0])
  if start is None or start.opcode != 'tuple':
    return {}
  found = {i: constant(caller, name, known) for i, name in enumerate(start.operands)}
  return {i: number for i, number in found.items() if number is not None}


def unchanged(body: Computation, state: Mapping[int, int]) -> dict[int, int]:
  """Those of the numbers that a turn of the loop passes on as they are."""
  if body.root is None or body.root.opcode != 'tuple':
    return {}

  def same(i):
    one = _source(body, body.root.operands[i])
    return (
      one is not None
      and one.opcode == 'get-tuple-element'
      and int(one.attribute('index')) == i
    )

  return {i: number for i, number in state.items() if same(i)}


def _outer(module: Module, fusion: Instruction, inner: Instruction) -> tuple[str, ...]:
  """The fusion's operands in the order in which the instruction inside takes them."""
  inside = module.computations[fusion.called('calls')]
  places = [inside.by_name[name] for name in inner.operands]
  return tuple(
    fusion.operands[int(one.inside)] if one.opcode == 'parameter' else one.name
    for one in places
  )


def _source(where: Computation, name: str) -> Instruction | None:
  """The instruction behind copies."""
  one = where.by_name.get(name)
  while one is not None and one.opcode in ('copy', 'bitcast'):
    one = where.by_name.get(one.operands[0])
  return one


def constant(
  where: Computation, name: str, known: Mapping[int, int] | None = None
) -> int | None:
  """A whole number that is written there, or that the computation's only parameter is known to hold."""
  one = _source(where, name)
  if one is None:
    return None
  if (
    one.opcode == 'get-tuple-element'
    and known
    and where.by_name[one.operands[0]].opcode == 'parameter'
  ):
    return known.get(int(one.attribute('index')))
  return (
    int(one.inside)
    if one.opcode == 'constant' and re.fullmatch(r'-?\d+', one.inside)
    else None
  )


def _step(body: Computation, index: int, state: Mapping[int, int]) -> int | None:
  """What a turn adds to this element of the state."""
  one = (
    _source(body, body.root.operands[index]) if body.root.opcode == 'tuple' else None
  )
  if one is None:
    return None
  if one.opcode == 'fusion':  # of the addition and what only looks at the counter
    return 1
  if one.opcode != 'add':
    return None
  others = {i: number for i, number in state.items() if i != index}
  return next(
    (n for name in one.operands if (n := constant(body, name, others)) is not None),
    None,
  )
