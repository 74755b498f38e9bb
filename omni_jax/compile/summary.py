"""Writes measurements as text for a terminal and as plain data for --json."""

import collections
from collections.abc import Iterator, Mapping
import contextlib
import re
from typing import Any, TypeVar

import jax

from omni_jax.chips import GIB
from omni_jax.compile.measure import Measurement
from omni_jax.compile.memory import Memory
from omni_jax.compile.roofline import COLLECTIVE_SECONDS, core_seconds
from omni_jax.compile.schedule import Transfer, Work
from omni_jax.compile.topology import Topology
from omni_jax.train.plan import Plan

T = TypeVar('T')


def versions() -> dict[str, str]:
  """Returns the versions of jax and, where it is installed, libtpu by name."""
  tools = {'jax': jax.__version__}
  with contextlib.suppress(ImportError):
    import libtpu

    tools['libtpu'] = libtpu.__version__
  return tools


PREFIXES = {1e18: 'E', 1e15: 'P', 1e12: 'T', 1e9: 'G', 1e6: 'M', 1e3: 'k'}


def _amount(value: float, unit: str) -> str:
  """Returns a value with the largest prefix that fits, such as '1.5 TFLOP'."""
  for factor, prefix in PREFIXES.items():
    if value >= factor:
      return f'{value / factor:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'


def _gib(value: float) -> str:
  """Returns a number of bytes in GiB."""
  return f'{value / GIB:.3f} GiB'


def axes_text(sizes: Mapping[str, int]) -> str:
  """Returns the mesh axes of more than one device, such as 'data=2 fsdp=4', or ''."""
  axes = [f'{axis}={size}' for axis, size in sizes.items() if size > 1]
  return ' '.join(axes)


def headline(plan: Plan, topology: Topology) -> str:
  """Returns one line that describes the topology, the mesh, the batch and the tools."""
  chip = topology.chip
  mesh = axes_text(plan.mesh.shape) or 'one device'
  devices = f', {chip.devices} devices a chip' if chip.devices > 1 else ''
  tools = ', '.join(f'{name} {version}' for name, version in versions().items())
  return (
    f'{topology.name}: {topology.chips} x {chip.kind}{devices}; mesh {mesh}; '
    f'batch {plan.budget.rows} x {plan.budget.length} positions; {tools}'
  )


def program_lines(
  measurement: Measurement, topology: Topology, buffers: int = 0
) -> Iterator[str]:
  """Yields the lines on one program: memory, FLOPs, bytes, collectives and seconds.

  Args:
    measurement: measurement of the program.
    topology: topology that it was compiled for.
    buffers: number of the largest temporaries to list.
  """
  memory = measurement.memory
  seconds = measurement.seconds
  device = 'device' if topology.chip.devices > 1 else 'chip'
  fits = 'fits' if measurement.fits else 'DOES NOT FIT'
  mesh = axes_text(measurement.mesh) or 'one device'
  yield (
    f'\n{measurement.name} on {mesh}: {fits}, peak {_gib(memory.peak)} of '
    f'{_gib(topology.hbm)} a {device}; compiled in {seconds.compiling:.0f} s '
    f'({seconds.cpu:.0f} s of CPU time) after {seconds.tracing:.0f} s of '
    'tracing'
  )
  if measurement.refusal:
    yield f'  {measurement.refusal}'
  for name, size in memory.kinds.items():
    yield _memory_line(name, size)
  yield _memory_line('padding of these', memory.padding)
  yield _memory_line('results', memory.results)
  yield _memory_line('temporaries', memory.temporaries)
  yield _memory_line('program', memory.program)
  for buffer in memory.largest[:buffers]:
    names = ', '.join(buffer.names)
    yield f'    {_gib(buffer.size):>12}  {buffer.shapes[:100]}  {names[:120]}'
  yield from _cost_lines(measurement)
  yield from _estimate_lines(measurement, topology)


def _memory_line(name: str, size: float) -> str:
  """Returns the line on one kind of memory of `size` bytes."""
  return f'  {name:<18} {_gib(size):>12}'


def _cost_lines(measurement: Measurement) -> Iterator[str]:
  """Yields the lines on FLOPs, bytes and what could not be counted."""
  cost = measurement.cost
  yield (
    f'  FLOPs in products  {_amount(cost.flops, "FLOP"):>12}   '
    f'HBM {_amount(cost.bytes, "B")}   '
    f'(by XLA, each loop once: {_amount(measurement.xla_flops, "FLOP")})'
  )
  if measurement.analytic:
    model, executed = measurement.analytic
    yield (
      f'  analytic           {_amount(model, "FLOP"):>12}   '
      f'with remat {_amount(executed, "FLOP")}, of which the program computes '
      f'{cost.flops / executed:.3f}'
    )
  for loop in cost.unknown_loops:
    yield f'  unknown number of iterations, counted once: {loop}'
  for target, times in cost.uncounted.items():
    yield f'  no cost estimate: {times} calls of {target}'


def _estimate_lines(measurement: Measurement, topology: Topology) -> Iterator[str]:
  """Yields the lines on collectives and seconds."""
  estimate = measurement.estimate
  for traffic in estimate.traffic:
    yield (
      f'  {traffic.kind:<18} {_amount(traffic.moved, "B"):>12}   '
      f'along {traffic.axes} ({traffic.network}), {traffic.count} times, '
      f'{1e3 * traffic.seconds:.1f} ms'
    )
  terms = estimate.terms.items()
  times = [f'{name} {1e3 * seconds:.1f} ms' for name, seconds in terms]
  yield f'  at full rate       {", ".join(times)}'
  line = (
    f'  estimate           {1e3 * estimate.overlapped:.1f} ms if collectives are '
    f'hidden, {1e3 * estimate.scheduled:.1f} ms as scheduled, '
    f'{1e3 * estimate.serial:.1f} ms if nothing overlaps; bound by {estimate.bound}'
  )
  if measurement.analytic:
    percents = []
    for seconds in estimate.step_seconds.values():
      mfu = measurement.mfu(seconds, topology.device_flops) or 0.0
      percents.append(f'{100 * mfu:.1f}')
    line += f'; MFU {", ".join(percents)} %'
  yield line
  if not measurement.analytic:
    yield (
      f'  floor              {1e3 * measurement.floor:.2f} ms: every argument is read '
      f'once, and a collective takes {1e6 * COLLECTIVE_SECONDS:.0f} us; as scheduled, '
      f'the program takes {estimate.scheduled / measurement.floor:.2f} times that'
    )


def program_json(measurement: Measurement, topology: Topology) -> dict[str, Any]:
  """Returns a measurement for --json: bytes, FLOPs and seconds of one device."""
  cost = measurement.cost
  estimate = measurement.estimate
  analytic = measurement.analytic
  mfu = {}
  for name, seconds in estimate.step_seconds.items():
    mfu[name] = measurement.mfu(seconds, topology.device_flops)
  return {
    'fits': measurement.fits,
    'mesh': axes_text(measurement.mesh),
    'floor': measurement.floor,
    'refused': measurement.refusal,
    'hbm': topology.hbm,
    'memory': _memory_json(measurement.memory),
    'largest': [buffer._asdict() for buffer in measurement.memory.largest],
    'flops': {
      'program': cost.flops,
      'xla_loops_once': measurement.xla_flops,
      'model': analytic.model if analytic else None,
      'with_remat': analytic.executed if analytic else None,
    },
    'hbm_bytes': cost.bytes,
    'unknown_loops': cost.unknown_loops,
    'uncounted_calls': dict(cost.uncounted),
    'collectives': [traffic._asdict() for traffic in estimate.traffic],
    'seconds': {
      'compute': estimate.compute,
      'hbm': estimate.memory,
      'core': estimate.core,
      'networks': dict(estimate.networks),
      **estimate.step_seconds,
    },
    'bound': estimate.bound,
    'mfu': mfu,
    'compile_seconds': measurement.seconds.compiling,
    'compile_processor_seconds': measurement.seconds.cpu,
    'trace_seconds': measurement.seconds.tracing,
    'hlo_characters': measurement.characters,
  }


def _memory_json(memory: Memory) -> dict[str, float]:
  """Returns the bytes of a program on one device, by kind, and their peak."""
  return {
    **memory.kinds,
    'padding': memory.padding,
    'results': memory.results,
    'temporaries': memory.temporaries,
    'program': memory.program,
    'peak': memory.peak,
  }


def _origin(item: Transfer | Work) -> str:
  """Returns where an instruction comes from; the text is the same for all layers."""
  source = re.sub(r'\d+', '', item.source)
  return source or re.sub(r'[.\d]+$', '', item.name)


def _largest(amounts: Mapping[T, float], count: int) -> list[T]:
  """Returns the keys of the `count` largest amounts, the largest first."""
  return sorted(amounts, key=lambda key: -amounts[key])[:count]


def top_transfers(measurement: Measurement, count: int) -> Iterator[str]:
  """Yields a line for each of the `count` origins with the most payload.

  The payload is what one device contributes to collectives, not what it sends.
  """
  payloads: dict[tuple[str, str], float] = collections.defaultdict(float)
  times: dict[tuple[str, str], float] = collections.defaultdict(float)
  for transfer in measurement.cost.transfers:
    key = (transfer.kind, _origin(transfer))
    payloads[key] += transfer.times * transfer.payload
    times[key] += transfer.times
  for key in _largest(payloads, count):
    kind, origin = key
    payload = payloads[key]
    yield (
      f'    {_amount(payload, "B"):>11} in {times[key]:6.0f} {kind:<18}  '
      f'{origin[-120:]}'
    )


def top_work(measurement: Measurement, topology: Topology, count: int) -> Iterator[str]:
  """Yields a line for each of the `count` origins with the most time of the core."""
  seconds: dict[str, float] = collections.defaultdict(float)
  flops: dict[str, float] = collections.defaultdict(float)
  sizes: dict[str, float] = collections.defaultdict(float)
  for work in measurement.cost.work:
    origin = _origin(work)
    seconds[origin] += work.times * core_seconds(work, topology)
    flops[origin] += work.times * work.flops
    sizes[origin] += work.times * work.bytes
  for origin in _largest(seconds, count):
    yield (
      f'    {1e3 * seconds[origin]:8.2f} ms {_amount(flops[origin], "FLOP"):>11} '
      f'{_amount(sizes[origin], "B"):>9}  {origin[-140:]}'
    )
