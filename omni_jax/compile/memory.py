"""Where the memory of a device goes.

Arguments are known by kind from their shardings, the rest by what the compiler says.
"""

from collections.abc import Mapping
import math
import pathlib
import re
from typing import Any, NamedTuple

import jax


def bytes_on_a_device(tree: Any) -> float:
  """Returns the bytes of arrays or shapes that have shardings.

  What the chip's layout adds is left out.
  """
  return float(
    sum(
      math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
      for leaf in jax.tree.leaves(tree)
    )
  )


class Buffer(NamedTuple):
  """A piece of memory and the values that take turns in it.

  Attributes:
    size: bytes.
    shapes: of the values, the compiler's words.
    names: of the instructions that make them.
  """

  size: float
  shapes: str
  names: tuple[str, ...]


class Memory(NamedTuple):
  """Bytes that a program takes on one device.

  Attributes:
    kinds: of the arguments (parameters, optimizer, buffers, batch …).
    padding: what the layouts on the chip add to them.
    results: outputs that do not lie in the memory of an argument.
    temporaries: activations and whatever else lives during the step.
    program: the instructions.
    peak: most that is in use at once, by the compiler's assignment of buffers.
    largest: pieces of the temporaries, largest first.
  """

  kinds: Mapping[str, float]
  padding: float
  results: float
  temporaries: float
  program: float
  peak: float
  largest: tuple[Buffer, ...] = ()


_VALUE = re.compile(r' value: <\d+ (\S+).*? @\d+> \(size=(\d+),offset=(\d+)\): (.*)')


def from_stats(
  stats: Any, kinds: Mapping[str, float], usage_report: str = '', assignment: str = ''
) -> Memory:
  """Returns the memory of a compiled program.

  Args:
    stats: `compiled.memory_analysis()`.
    usage_report, assignment: as in `from_dump`.
  """
  arguments = stats.argument_size_in_bytes
  results = stats.output_size_in_bytes - stats.alias_size_in_bytes
  if usage_report:  # the stats count on-chip memory as temporaries
    total = read_total(usage_report)
    return Memory(
      kinds,
      arguments - sum(kinds.values()),
      results,
      total - arguments - results,
      stats.generated_code_size_in_bytes,
      total + stats.generated_code_size_in_bytes,
      largest_buffers(assignment),
    )
  peak = (
    arguments + results + stats.temp_size_in_bytes + stats.generated_code_size_in_bytes
  )
  return Memory(
    kinds,
    arguments - sum(kinds.values()),
    results,
    stats.temp_size_in_bytes,
    stats.generated_code_size_in_bytes,
    peak,
  )


def from_dump(kinds: Mapping[str, float], usage_report: str, assignment: str) -> Memory:
  """Returns the memory of a program that the compiler gave up, as it was planned.

  Args:
    usage_report: text of `…memory-usage-report.txt`.
    assignment: text of `…buffer-assignment.txt`.
  """
  total = read_total(usage_report)
  arguments = 0.0
  results = 0.0
  for line in assignment.splitlines():
    if match := re.match(r'allocation \d+: size (\d+)(.*)', line):
      if ', parameter ' in match[2]:
        arguments += float(match[1])
      elif 'live-out' in match[2]:
        results += float(match[1])
  return Memory(
    kinds,
    arguments - sum(kinds.values()),
    results,
    max(0.0, total - arguments - results),
    0.0,
    total,
    largest_buffers(assignment),
  )


def read_total(usage_report: str) -> float:
  """Returns the bytes of main memory by a memory usage report."""
  match = re.search(r'color=0\)\s*Total bytes: (\d+)', usage_report)
  assert match, usage_report[:200]
  return float(match[1])


def largest_buffers(assignment: str, count: int = 40) -> tuple[Buffer, ...]:
  """Returns the largest temporaries of a buffer assignment.

  Each has the values that lie in it in turn.
  """
  pieces: dict[tuple[int, int], list[tuple[int, str, str]]] = {}
  wanted = False
  number = 0
  for line in assignment.splitlines():
    if line.startswith('allocation '):
      number += 1
      wanted = 'color' not in line and any(
        word in line for word in ('preallocated-temp', 'live-out')
      )
      wanted = wanted and ', parameter ' not in line
    elif wanted and (match := _VALUE.match(line)):
      name, size, offset, shape = match.groups()
      pieces.setdefault((number, int(offset)), []).append(
        (int(size), name, re.sub(r'\{[^}]*\}', '', shape))
      )
  buffers = []
  for values in pieces.values():
    size = max(value[0] for value in values)
    top = [value for value in values if value[0] == size]
    buffers.append(
      Buffer(
        float(size),
        ', '.join(dict.fromkeys(value[2] for value in top)),
        tuple(dict.fromkeys(value[1] for value in top)),
      )
    )
  return tuple(sorted(buffers, key=lambda buffer: -buffer.size)[:count])


def texts(folder: pathlib.Path) -> tuple[str, str, str]:
  """Returns what the compiler wrote of the largest program in a folder.

  These are the memory usage report, the buffer assignment and the HLO; '' if none.
  """
  programs = sorted(
    folder.glob('*after_optimizations.txt'), key=lambda path: path.stat().st_size
  )
  if not programs:
    return '', '', ''
  stem = str(programs[-1]).removesuffix('.txt')
  paths = [
    pathlib.Path(stem + end)
    for end in ('-memory-usage-report.txt', '-buffer-assignment.txt', '.txt')
  ]
  return tuple(path.read_text() if path.exists() else '' for path in paths)
