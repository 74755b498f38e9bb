"""Parses the text of a compiled program into computations, instructions and shapes.

Such texts reach 100 MB. They are therefore read line by line in one pass, and no
regular expression spans more than one line.
"""

import math
import re
from typing import NamedTuple

MAIN_MEMORY = 0  # XLA's memory space; VMEM, SMEM and semaphores have other numbers
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
    dims: size of each dimension.
    space: XLA's number of the memory space that holds it, MAIN_MEMORY or another.
  """

  dtype: str
  dims: tuple[int, ...]
  space: int

  @property
  def elements(self) -> int:
    """Number of elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Bytes without padding; fractional for types below 8 bits."""
    return self.elements * BITS[self.dtype] / 8


def main_memory_bytes(shapes: tuple[Shape, ...]) -> float:
  """Returns the bytes of the arrays that are in main memory; others count as 0."""
  return sum(shape.bytes for shape in shapes if shape.space == MAIN_MEMORY)


class Instruction(NamedTuple):
  """An instruction, parsed from a line `name = shapes opcode(operands), attributes`.

  Attributes:
    name: name of the instruction, without the `%`.
    opcode: XLA's name of the operation.
    shapes: shape of the result, or the shapes of a flattened tuple.
    operands: names of the instructions whose results it takes.
    inside: text between the parentheses.
    rest: text after the parentheses.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  inside: str
  rest: str

  def attribute(self, name: str) -> str:
    """Returns the value of an attribute, or '' where it is absent.

    The value is the text after `name=`, up to the next comma outside of brackets.
    """
    begin = self.rest.find(f'{name}=')
    while begin > 0 and self.rest[begin - 1] not in ' ,':
      begin = self.rest.find(f'{name}=', begin + 1)
    if begin < 0:
      return ''
    start = begin + len(name) + 1
    depth = 0
    end = start
    while end < len(self.rest):
      c = self.rest[end]
      if c in '{[(':
        depth += 1
      elif c in '}])':
        depth -= 1
      elif c == ',' and depth == 0:
        break
      end += 1
    return self.rest[start:end]

  def called(self, name: str) -> str:
    """Returns the name of the computation in `name=%computation`, or ''."""
    text = self.attribute(name)
    if not text.startswith('%'):
      return ''
    return text[1:].split(' ')[0]

  def numbers(self, name: str) -> tuple[int, ...]:
    """Returns the numbers in `name={1,2}`."""
    digits = re.findall(r'\d+', self.attribute(name))
    return tuple(map(int, digits))

  @property
  def bytes(self) -> float:
    """Bytes of all results, in whatever memory."""
    return sum(shape.bytes for shape in self.shapes)

  @property
  def source(self) -> str:
    """JAX's path of names, without the parts that all instructions share, or ''."""
    match = _OP_NAME.search(self.rest)
    if not match:
      return ''
    return _COMMON_SOURCE.sub('', match[1])


class Computation:
  """A named list of instructions; in a scheduled program, in the order of execution.

  Attributes:
    by_name: the same instructions by name.
    root: instruction whose result is returned; None in a computation that names none.
  """

  def __init__(self, name: str):
    self.name = name
    self.instructions: list[Instruction] = []
    self.by_name: dict[str, Instruction] = {}
    self.root: Instruction | None = None

  def add(self, instruction: Instruction, root: bool) -> None:
    """Appends an instruction, which is the root if `root` is true."""
    self.instructions.append(instruction)
    self.by_name[instruction.name] = instruction
    if root:
      self.root = instruction

  def operands(self, instruction: Instruction) -> list[Instruction]:
    """Returns the instructions whose results an instruction takes."""
    return [self.by_name[name] for name in instruction.operands]

  def parameters(self) -> list[Instruction]:
    """Returns the parameters in the order of their numbers."""
    parameters = [
      instruction
      for instruction in self.instructions
      if instruction.opcode == 'parameter'
    ]
    return sorted(parameters, key=lambda parameter: int(parameter.inside))


class Module(NamedTuple):
  """A compiled program.

  Attributes:
    computations: all computations by name.
    entry: computation that runs first.
  """

  computations: dict[str, Computation]
  entry: Computation


def parse_shapes(text: str) -> tuple[Shape, ...]:
  """Returns the shapes in `f32[2,3]{1,0:T(8,128)S(1)}` or in a tuple of them."""
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

  Quoted text is skipped. If no parenthesis closes it, this is the length of the text.
  """
  depth = 0
  i = begin
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


def _shapes_end(text: str) -> int:
  """Returns the index at which the shapes at the beginning of a text end."""
  if text.startswith('('):
    return _closing(text, 0) + 1
  return text.index(' ')


def parse_instruction(line: str) -> tuple[Instruction, bool] | None:
  """Returns the instruction of a line and whether it is the root.

  Returns None for a line without an instruction.
  """
  line = line.strip()
  is_root = line.startswith('ROOT ')
  name, equals, after = line.removeprefix('ROOT ').partition(' = ')
  if not equals or not name.startswith('%'):
    return None
  shapes_end = _shapes_end(after)
  shapes = parse_shapes(after[:shapes_end])
  call = after[shapes_end:].lstrip()
  opcode, _, _ = call.partition('(')
  call_end = _closing(call, len(opcode))
  inside = call[len(opcode) + 1 : call_end]
  operands: tuple[str, ...] = ()
  if opcode not in ('constant', 'parameter'):
    operands = tuple(_NAME.findall(inside))
  rest = call[call_end + 1 :]
  return Instruction(name[1:], opcode, shapes, operands, inside, rest), is_root


def _new_computation(line: str) -> Computation | None:
  """Returns the new, empty computation that a line begins, or None."""
  if not line.endswith('{') or ') -> ' not in line:
    return None
  match = _NAME.search(line)
  return Computation(match[1]) if match else None


def parse(text: str) -> Module:
  """Parses all computations of a program.

  A line `%name (…) -> … {` begins a computation and a line `}` ends it. An instruction
  begins with two spaces and its name. Any other line continues the instruction before
  it, because the metadata of a kernel may contain line breaks.

  Raises:
    ValueError: if the text has no ENTRY computation.
  """
  computations: dict[str, Computation] = {}
  current: Computation | None = None
  entry: Computation | None = None
  pending = ''
  for line in text.splitlines():
    if current is None:
      current = _new_computation(line)
      if current is None:
        continue
      computations[current.name] = current
      if line.startswith('ENTRY'):
        entry = current
      continue
    ends = line == '}' or line.startswith('}, execution_thread=')
    if not ends and not line.startswith(('  %', '  ROOT %')):
      pending += line
      continue
    if pending and (parsed := parse_instruction(pending)):
      current.add(*parsed)
    if ends:
      pending = ''
      current = None
    else:
      pending = line
  if entry is None:
    raise ValueError(f'no ENTRY computation in {len(text)} characters of HLO')
  return Module(computations, entry)
