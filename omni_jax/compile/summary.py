"""What was measured, as text for a terminal and as plain data for --json."""

from collections.abc import Iterator
import re
from typing import Any

import jax

from omni_jax.chips import GIB
from omni_jax.compile.measure import Measured
from omni_jax.compile.topology import Topology
from omni_jax.train.plan import Plan


def versions() -> dict[str, str]:
  """Of jax, and of libtpu where it is there."""
  try:
    import libtpu

    found = {'libtpu': libtpu.__version__}
  except ImportError:
    found = {}
  return {'jax': jax.__version__, **found}


def _amount(value: float, unit: str) -> str:
  for factor, prefix in (
    (1e18, 'E'),
    (1e15, 'P'),
    (1e12, 'T'),
    (1e9, 'G'),
    (1e6, 'M'),
    (1e3, 'k'),
  ):
    if value >= factor:
      return f'{value / factor:.3g} {prefix}{unit}'
  return f'{value:.3g} {unit}'


def _gib(value: float) -> str:
  return f'{value / GIB:.3f} GiB'


def head(plan: Plan, topology: Topology) -> str:
  """One line: what runs where."""
  mesh = (
    ' '.join(f'{axis}={n}' for axis, n in plan.mesh.shape.items() if n > 1)
    or 'one device'
  )
  each = (
    f', {topology.chip.devices} devices a chip' if topology.chip.devices > 1 else ''
  )
  tools = ', '.join(f'{name} {version}' for name, version in versions().items())
  return (
    f'{topology.name}: {topology.chips} x {topology.chip.kind}{each}; mesh {mesh}; batch {plan.budget.rows} x '
    f'{plan.budget.length} positions; {tools}'
  )


def describe(one: Measured, topology: Topology, buffers: int = 0) -> Iterator[str]:
  """Lines on one program.

  Args:
    buffers: how many of the largest temporaries to list.
  """
  m, device = one.memory, 'device' if topology.chip.devices > 1 else 'chip'
  fits = 'fits' if one.fits else 'DOES NOT FIT'
  yield (
    f'\n{one.name}: {fits}, peak {_gib(m.peak)} of {_gib(topology.hbm)} a {device}; compiled in '
    f'{one.seconds[1]:.0f} s ({one.seconds[2]:.0f} s of processors) after {one.seconds[0]:.0f} s of tracing'
  )
  if one.refused:
    yield f'  {one.refused}'
  parts = {
    **m.kinds,
    'padding of these': m.padding,
    'results': m.results,
    'temporaries': m.temporaries,
    'program': m.program,
  }
  for name, size in parts.items():
    yield f'  {name:<18} {_gib(size):>12}'
  for buffer in m.largest[:buffers]:
    yield f'    {_gib(buffer.size):>12}  {buffer.shapes[:100]}  {", ".join(buffer.names)[:120]}'
  yield from _work(one, topology)


def _work(one: Measured, topology: Topology) -> Iterator[str]:
  e, cost = one.estimate, one.cost
  yield (
    f'  FLOPs in products  {_amount(cost.flops, "FLOP"):>12}   HBM {_amount(cost.bytes, "B")}   '
    f'(XLA, loops once: {_amount(one.counted, "FLOP")})'
  )
  if one.model:
    model, executed = one.model
    yield (
      f'  analytic           {_amount(model, "FLOP"):>12}   with remat {_amount(executed, "FLOP")}, of which the '
      f'program computes {cost.flops / executed:.3f}'
    )
  for loop in cost.endless:
    yield f'  counted once: {loop}'
  for target, times in cost.uncounted.items():
    yield f'  no cost estimate: {times} calls of {target}'
  for t in e.traffic:
    yield (
      f'  {t.kind:<18} {_amount(t.moved, "B"):>12}   along {t.axes} ({t.network}), {t.count} times, '
      f'{1e3 * t.seconds:.1f} ms'
    )
  peak = topology.chip.flops / topology.chip.devices
  terms = {'compute': e.compute, 'HBM': e.memory, **e.networks}
  yield '  at full rate       ' + ', '.join(
    f'{name} {1e3 * seconds:.1f} ms' for name, seconds in terms.items()
  )
  line = (
    f'  estimate           {1e3 * e.overlapped:.1f} ms if collectives are hidden, {1e3 * e.scheduled:.1f} ms as '
    f'scheduled, {1e3 * e.serial:.1f} ms if nothing overlaps; bound by {e.bound}'
  )
  if one.model:
    line += (
      '; MFU '
      + ', '.join(
        f'{100 * one.mfu(t, peak):.1f}' for t in (e.overlapped, e.scheduled, e.serial)
      )
      + ' %'
    )
  yield line


def plain(one: Measured, topology: Topology) -> dict[str, Any]:
  """For --json; sizes in bytes, times in seconds, of one device."""
  m, e = one.memory, one.estimate
  steps = {name: getattr(e, name) for name in ('overlapped', 'scheduled', 'serial')}
  peak = topology.chip.flops / topology.chip.devices
  return {
    'fits': one.fits,
    'refused': one.refused,
    'hbm': topology.hbm,
    'memory': {
      **m.kinds,
      'padding': m.padding,
      'results': m.results,
      'temporaries': m.temporaries,
      'program': m.program,
      'peak': m.peak,
    },
    'largest': [
      dict(size=b.size, shapes=b.shapes, names=list(b.names)) for b in m.largest
    ],
    'flops': {
      'program': one.cost.flops,
      'xla_loops_once': one.counted,
      'model': one.model and one.model[0],
      'with_remat': one.model and one.model[1],
    },
    'hbm_bytes': one.cost.bytes,
    'endless_loops': one.cost.endless,
    'uncounted_calls': dict(one.cost.uncounted),
    'collectives': [t._asdict() for t in e.traffic],
    'seconds': {
      'compute': e.compute,
      'hbm': e.memory,
      'core': e.core,
      'networks': dict(e.networks),
      **steps,
    },
    'bound': e.bound,
    'mfu': {name: one.mfu(seconds, peak) for name, seconds in steps.items()},
    'compile_seconds': one.seconds[1],
    'compile_processor_seconds': one.seconds[2],
    'trace_seconds': one.seconds[0],
    'hlo_characters': one.characters,
  }


def top_transfers(one: Measured, count: int) -> Iterator[str]:
  """Where the collectives with most payload come from: what one chip puts in, not what it sends."""
  sums: dict[tuple[str, str], list[float]] = {}
  for t in one.cost.transfers:
    entry = sums.setdefault(
      (t.kind, re.sub(r'\d+', '', t.source) or re.sub(r'[.\d]+$', '', t.name)),
      [0.0, 0.0],
    )
    entry[0] += t.times * t.payload
    entry[1] += t.times
  for (kind, name), (payload, times) in sorted(
    sums.items(), key=lambda item: -item[1][0]
  )[:count]:
    yield f'    {_amount(payload, "B"):>11} put in by {times:6.0f} {kind:<18}  {name[-120:]}'


def top_work(one: Measured, topology: Topology, count: int) -> Iterator[str]:
  """The instructions, summed by where they come from, that take most of the core's time."""
  flops, rate = (
    x / topology.chip.devices for x in (topology.chip.flops, topology.chip.hbm_rate)
  )
  sums: dict[str, list[float]] = {}
  for work in one.cost.work:
    name = re.sub(r'\d+', '', work.source) or re.sub(r'[.\d]+$', '', work.name)
    entry = sums.setdefault(name, [0.0, 0.0, 0.0])
    for i, x in enumerate(
      (max(work.flops / flops, work.bytes / rate), work.flops, work.bytes)
    ):
      entry[i] += work.times * x
  for name, (seconds, work_flops, size) in sorted(
    sums.items(), key=lambda item: -item[1][0]
  )[:count]:
    yield f'    {1e3 * seconds:8.2f} ms {_amount(work_flops, "FLOP"):>11} {_amount(size, "B"):>9}  {name[-140:]}'
