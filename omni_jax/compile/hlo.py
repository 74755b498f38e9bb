"""Reads the text of a compiled program: its computations, instructions and shapes.

One pass over the lines, with no regular expression over more than one of them: such
texts reach 100 MB.
"""

import math
import re
from typing import NamedTuple

MAIN_MEMORY = 0  # XLA's number of it; VMEM, SMEM and semaphores have others
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
_OP_NAME = re.compile(r'op_name="([^"]*)"')
_COMMON_SOURCE = re.compile(r'jit\(step\)/|closed_call/|jit\(main\)/')


class Shape(NamedTuple):
  """The shape of one array.

  Attributes:
    dtype: XLA's name of the element type.
    space: XLA's number of the memory that it lies in, MAIN_MEMORY or another.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int

  @property
  def elements(self) -> int:
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    return self.elements * BITS[self.dtype] / 8


def main_memory_bytes(shapes: tuple[Shape, ...]) -> float:
  """Returns the bytes of those arrays that lie in main memory."""
  return sum(shape.bytes for shape in shapes if shape.space == MAIN_MEMORY)


class Instruction(NamedTuple):
  """A line `name = shapes opcode(operands), attributes`.

  Attributes:
    shapes: those of a flattened tuple.
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
    """Returns the text of `name=…` up to the next comma outside of braces, or ''."""
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
    """Returns the computation of `name=%computation`, or ''."""
    text = self.attribute(name)
    return text[1:].split(' ')[0] if text.startswith('%') else ''

  def numbers(self, name: str) -> tuple[int, ...]:
    """Returns the numbers of `name={1,2}`."""
    return tuple(int(n) for n in re.findall(r'\d+', self.attribute(name)))

  @property
  def bytes(self) -> float:
    return sum(shape.bytes for shape in self.shapes)

  @property
  def source(self) -> str:
    """jax's path of names, without the parts that every instruction has."""
    match = _OP_NAME.search(self.rest)
    return _COMMON_SOURCE.sub('', match[1]) if match else ''


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
    parameters = [
      instruction
      for instruction in self.instructions
      if instruction.opcode == 'parameter'
    ]
    return sorted(parameters, key=lambda parameter: int(parameter.inside))


class Module(NamedTuple):
  """A compiled program."""

  computations: dict[str, Computation]
  entry: Computation


def parse_shapes(text: str) -> tuple[Shape, ...]:
  """Returns the shapes in `f32[2,3]{1,0:T(8,128)S(1)}` or in a tuple of such."""
  shapes = []
  for dtype, dims, layout in _ARRAY.findall(text):
    if dtype not in BITS:
      continue
    sizes = tuple(int(n.lstrip('<=')) for n in dims.split(',') if n)
    begin = layout.find('S(')
    space = MAIN_MEMORY
    if begin >= 0:
      space = int(layout[begin + 2 : layout.index(')', begin)])
    shapes.append(Shape(dtype, sizes, space))
  return tuple(shapes)


def _closing(text: str, begin: int) -> int:
  """Returns the index of the parenthesis that closes the one at `begin`.

  Quoted text is passed over.
  """
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
  """Returns the instruction of a line and whether it is the root, or None."""
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
  """Reads all computations of a program.

  A line `%name (…) -> … {` begins one, a line `}` ends it. An instruction begins with
  its name behind two spaces; lines of another form carry on the one before (metadata
  that somebody gave a kernel may hold line breaks).
  """
  computations: dict[str, Computation] = {}
  current: Computation | None = None
  entry: Computation | None = None
  pending = ''
  for line in text.splitlines():
    if current is None:
      if line.endswith('{') and ') -> ' in line and (match := _NAME.search(line)):
        current = Computation(match[1])
        computations[match[1]] = current
        entry = current if line.startswith('ENTRY') else entry
      continue
    ends = line == '}' or line.startswith('}, execution_thread=')
    if not ends and not line.startswith(('  %', '  ROOT %')):
      pending += line
      continue
    if pending and (parsed := parse_instruction(pending)):
      current.add(*parsed)
    pending = '' if ends else line
    current = None if ends else current
  if entry is None:
    raise ValueError(f'no ENTRY computation in {len(text)} characters of HLO')
  return Module(computations, entry)
