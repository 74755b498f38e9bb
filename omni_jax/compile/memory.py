"""Where the memory of a device goes: arguments by kind from their shardings, the rest from the compiler."""

from collections.abc import Mapping
import math
import pathlib
import re
from typing import Any, NamedTuple

import jax


def bytes_on_a_device(tree: Any) -> float:
  """Of arrays or shapes that have shardings, without what the chip's layout adds."""
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
  """Bytes of a device.

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
  stats: Any, kinds: Mapping[str, float], report: str = '', assignment: str = ''
) -> Memory:
  """Of a compiled program: `compiled.memory_analysis()`; the texts as in `from_dump`."""
  arguments, results = (
    stats.argument_size_in_bytes,
    stats.output_size_in_bytes - stats.alias_size_in_bytes,
  )
  if report:  # the stats count on-chip memory as temporaries
    total, largest = read_report(report), largest_buffers(assignment)
    return Memory(
      kinds,
      arguments - sum(kinds.values()),
      results,
      total - arguments - results,
      stats.generated_code_size_in_bytes,
      total + stats.generated_code_size_in_bytes,
      largest,
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


def from_dump(kinds: Mapping[str, float], report: str, assignment: str) -> Memory:
  """Of a program that the compiler gave up because it does not fit; what it had planned is in the dump.

  Args:
    report: text of `…memory-usage-report.txt`.
    assignment: text of `…buffer-assignment.txt`.
  """
  total, sizes = read_report(report), {'parameter': 0.0, 'live-out': 0.0}
  for line in assignment.splitlines():
    if found := re.match(r'allocation \d+: size (\d+)(.*)', line):
      if ', parameter ' in found[2]:
        sizes['parameter'] += float(found[1])
      elif 'live-out' in found[2]:
        sizes['live-out'] += float(found[1])
  return Memory(
    kinds,
    sizes['parameter'] - sum(kinds.values()),
    sizes['live-out'],
    max(0.0, total - sizes['parameter'] - sizes['live-out']),
    0.0,
    total,
    largest_buffers(assignment),
  )


def read_report(text: str) -> float:
  """Bytes of main memory, of a memory usage report."""
  found = re.search(r'color=0\)\s*Total bytes: (\d+)', text)
  assert found, text[:200]
  return float(found[1])


def largest_buffers(assignment: str, count: int = 40) -> tuple[Buffer, ...]:
  """The largest pieces of the temporaries of a buffer assignment, each with the values that lie in it in turn."""
  pieces: dict[tuple[int, int], list[tuple[int, str, str]]] = {}
  wanted, number = False, 0
  for line in assignment.splitlines():
    if line.startswith('allocation '):
      number += 1
      wanted = 'color' not in line and any(
        word in line for word in ('preallocated-temp', 'live-out')
      )
      wanted = wanted and ', parameter ' not in line
    elif wanted and (found := _VALUE.match(line)):
      name, size, offset, shape = found.groups()
      pieces.setdefault((number, int(offset)), []).append(
        (int(size), name, re.sub(r'\{[^}]*\}', '', shape))
      )
  made = []
  for values in pieces.values():
    size = max(value[0] for value in values)
    top = [value for value in values if value[0] == size]
    made.append(
      Buffer(
        float(size),
        ', '.join(dict.fromkeys(value[2] for value in top)),
        tuple(dict.fromkeys(value[1] for value in top)),
      )
    )
  return tuple(sorted(made, key=lambda b: -b.size)[:count])


def texts(folder: pathlib.Path) -> tuple[str, str, str]:
  """(memory usage report, buffer assignment, HLO) of the largest program that was dumped into a folder; '' if none."""
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
