"""Measures what the memory of a device is used for.

The sizes of the arguments follow from their shardings. All other sizes are read from
what the compiler reports.
"""

from collections.abc import Mapping
import math
import pathlib
import re
from typing import Any, NamedTuple

import jax


def bytes_on_a_device(tree: Any) -> float:
  """Returns the bytes that a tree of arrays or shapes takes on one device.

  The padding of the chip's layouts is not included.

  Args:
    tree: arrays, or `jax.ShapeDtypeStruct` with shardings.
  """
  size = 0
  for leaf in jax.tree.leaves(tree):
    shard_shape = leaf.sharding.shard_shape(leaf.shape)
    size += math.prod(shard_shape) * leaf.dtype.itemsize
  return float(size)


class Buffer(NamedTuple):
  """A piece of memory and the values that are stored in it one after the other.

  Attributes:
    size: bytes of the piece.
    shapes: shapes of the values as the compiler writes them, separated by commas.
    names: names of the instructions that compute the values.
  """

  size: float
  shapes: str
  names: tuple[str, ...]


class Memory(NamedTuple):
  """The bytes that a program takes on one device.

  Attributes:
    kinds: bytes of the arguments by kind (parameters, optimizer, buffers, batch, …).
    padding: bytes that the layouts of the chip add to the arguments.
    results: bytes of outputs that do not reuse the memory of an argument.
    temporaries: bytes of activations and of all else that lives during the step only.
    program: bytes of the instructions.
    peak: most bytes in use at once, by the compiler's buffer assignment.
    largest: pieces of the temporaries, the largest first.
  """

  kinds: Mapping[str, float]
  padding: float
  results: float
  temporaries: float
  program: float
  peak: float
  largest: tuple[Buffer, ...] = ()


_ALLOCATION = re.compile(r'allocation \d+: size (\d+)(.*)')
_VALUE = re.compile(r' value: <\d+ (\S+).*? @\d+> \(size=(\d+),offset=(\d+)\): (.*)')


def from_stats(
  stats: Any, kinds: Mapping[str, float], usage_report: str = '', assignment: str = ''
) -> Memory:
  """Returns the memory of a compiled program.

  Args:
    stats: result of `compiled.memory_analysis()`.
    kinds: bytes of the arguments by kind.
    usage_report: text of `…memory-usage-report.txt`, or '' if there is none.
    assignment: text of `…buffer-assignment.txt`, or '' if there is none.
  """
  arguments = stats.argument_size_in_bytes
  results = stats.output_size_in_bytes - stats.alias_size_in_bytes
  program = stats.generated_code_size_in_bytes
  temporaries = stats.temp_size_in_bytes
  if usage_report:  # the stats count on-chip memory as temporaries, too
    temporaries = read_total(usage_report) - arguments - results
  return Memory(
    kinds=kinds,
    padding=arguments - sum(kinds.values()),
    results=results,
    temporaries=temporaries,
    program=program,
    peak=arguments + results + temporaries + program,
    largest=largest_buffers(assignment) if usage_report else (),
  )


def from_dump(kinds: Mapping[str, float], usage_report: str, assignment: str) -> Memory:
  """Returns the memory that the compiler had planned for a program that does not fit.

  Args:
    kinds: bytes of the arguments by kind.
    usage_report: text of `…memory-usage-report.txt`.
    assignment: text of `…buffer-assignment.txt`.
  """
  total = read_total(usage_report)
  arguments = 0.0
  results = 0.0
  for line in assignment.splitlines():
    match = _ALLOCATION.match(line)
    if not match:
      continue
    size = float(match[1])
    if ', parameter ' in match[2]:
      arguments += size
    elif 'live-out' in match[2]:
      results += size
  return Memory(
    kinds=kinds,
    padding=arguments - sum(kinds.values()),
    results=results,
    temporaries=max(0.0, total - arguments - results),
    program=0.0,
    peak=total,
    largest=largest_buffers(assignment),
  )


def read_total(usage_report: str) -> float:
  """Returns the total bytes of main memory that a memory usage report states."""
  match = re.search(r'color=0\)\s*Total bytes: (\d+)', usage_report)
  assert match, usage_report[:200]
  return float(match[1])


class _Value(NamedTuple):
  """A value in a buffer assignment.

  Attributes:
    size: bytes of the value.
    name: name of the instruction that computes it.
    shape: its shape as the compiler writes it, without layout.
  """

  size: int
  name: str
  shape: str


def largest_buffers(assignment: str, count: int = 40) -> tuple[Buffer, ...]:
  """Returns the `count` largest temporaries of a buffer assignment.

  Of the values that a piece of memory holds one after the other, only the largest are
  listed.
  """
  pieces: dict[tuple[int, int], list[_Value]] = {}
  is_temporary = False
  number = 0
  for line in assignment.splitlines():
    if line.startswith('allocation '):
      number += 1
      is_temporary = _is_temporary(line)
      continue
    match = _VALUE.match(line) if is_temporary else None
    if match:
      name, size, offset, shape = match.groups()
      shape = re.sub(r'\{[^}]*\}', '', shape)
      piece = pieces.setdefault((number, int(offset)), [])
      piece.append(_Value(int(size), name, shape))
  buffers = [_buffer(values) for values in pieces.values()]
  buffers.sort(key=lambda buffer: -buffer.size)
  return tuple(buffers[:count])


def _is_temporary(allocation: str) -> bool:
  """Returns whether a line allocates temporaries in main memory."""
  if 'color' in allocation or ', parameter ' in allocation:
    return False
  return 'preallocated-temp' in allocation or 'live-out' in allocation


def _buffer(values: list[_Value]) -> Buffer:
  """Returns a piece of memory with the largest of its values, each named once."""
  size = max(value.size for value in values)
  largest = [value for value in values if value.size == size]
  shapes = dict.fromkeys(value.shape for value in largest)
  names = dict.fromkeys(value.name for value in largest)
  return Buffer(float(size), ', '.join(shapes), tuple(names))


class CompilerTexts(NamedTuple):
  """The compiler's texts about a program; '' for a text that it did not write.

  Attributes:
    usage_report: memory usage report.
    assignment: buffer assignment.
    hlo: optimized HLO.
  """

  usage_report: str = ''
  assignment: str = ''
  hlo: str = ''


def read_texts(folder: pathlib.Path) -> CompilerTexts:
  """Returns what the compiler wrote about the largest program in a folder."""
  programs = list(folder.glob('*after_optimizations.txt'))
  if not programs:
    return CompilerTexts()
  programs.sort(key=lambda path: path.stat().st_size)
  stem = str(programs[-1]).removesuffix('.txt')
  return CompilerTexts(
    usage_report=_text_or_empty(f'{stem}-memory-usage-report.txt'),
    assignment=_text_or_empty(f'{stem}-buffer-assignment.txt'),
    hlo=_text_or_empty(f'{stem}.txt'),
  )


def _text_or_empty(name: str) -> str:
  """Returns the text of a file, or '' if it does not exist."""
  path = pathlib.Path(name)
  return path.read_text() if path.exists() else ''
