"""`--search`: rows a chip, remat and mesh splits of a config; what fits, and how long a step takes at least."""

from collections.abc import Callable
import copy
from typing import Any, NamedTuple

from omni_jax import sharding
from omni_jax.compile.measure import check_state, make_plan, measure, Measured
from omni_jax.compile.topology import Topology
from omni_jax.errors import UserError
from omni_jax.nn.decoder import Remat

ROWS = (1, 2, 4, 8, 16)  # a chip
REMATS = (
  Remat.FULL,
  Remat.ATTENTION,
  Remat.DOTS,
  Remat.NONE,
)  # from the least memory to the most


class Tried(NamedTuple):
  """A setting and what came of it.

  Attributes:
    changes: config names (after `config.`) and values.
    measured: None where it was refused before compiling.
    said: why it was refused.
  """

  changes: dict[str, Any]
  rows: int  # a chip
  measured: Measured | None
  said: str = ''


def changed(config: Any, changes: dict[str, Any]) -> Any:
  """A copy of the config with other values."""
  made = copy.deepcopy(config).unlock()
  for name, value in changes.items():
    *path, last = name.split('.')
    part = made
    for key in path:
      part = part[key]
    if isinstance(value, dict):
      part[last].update(value)
    else:
      part[last] = value
  batch = made.codec.batch
  made.codec.batch = (
    -(-batch // changes['data.budget.rows']) * changes['data.budget.rows']
  )
  return made.lock()


def search(config: Any, topology: Topology, say: Callable[[str], None]) -> list[Tried]:
  """Per mesh split and remat: one row a chip, then the most rows that should fit by what the first took.

  More memory for activations is not tried where less of it did not fit with one row.
  """
  found: list[Tried] = []
  for split in sharding.splits(
    len(topology.devices), topology.slices, config.model.decoder.experts
  ):
    for remat in REMATS:
      if remat == Remat.ATTENTION and topology.devices[0].platform == 'cpu':
        continue  # pretended CPUs have no kernel whose result could be kept
      first = _try(config, topology, split, remat, 1)
      found.append(first)
      say(line(first, topology))
      if first.measured is None or not first.measured.fits:
        break
      m = first.measured.memory
      most = max(
        n for n in ROWS if n == 1 or m.peak + (n - 1) * m.temporaries <= topology.hbm
      )
      if most > 1:
        found.append(_try(config, topology, split, remat, most))
        say(line(found[-1], topology))
  return found


def _try(
  config: Any, topology: Topology, split: dict[str, int], remat: Remat, rows: int
) -> Tried:
  changes = {
    'mesh': split,
    'model.decoder.remat': str(remat),
    'data.budget.rows': rows * len(topology.devices),
  }
  try:
    plan = make_plan(changed(config, changes), topology)
    check_state(plan, topology)
  except UserError as error:
    return Tried(changes, rows, None, str(error).split(';')[0])
  (one,) = measure(plan, topology, ['train'])
  return Tried(changes, rows, one)


def line(tried: Tried, topology: Topology) -> str:
  """One row of the table."""
  mesh = (
    ' '.join(f'{axis}={n}' for axis, n in tried.changes['mesh'].items() if n > 1) or '1'
  )
  start = f'{mesh:<24} {tried.changes["model.decoder.remat"]:<7} {tried.rows:>4}'
  if tried.measured is None:
    return f'{start}  {tried.said}'
  m, peak = tried.measured, topology.chip.flops / topology.chip.devices
  e, size = m.estimate, m.memory.peak / 2**30
  mfu = [100 * m.mfu(seconds, peak) for seconds in (e.overlapped, e.serial)]
  return (
    f'{start} {size:8.2f} {"fits" if m.fits else "no":>5} {e.overlapped:8.3f} {e.serial:8.3f} {mfu[0]:6.1f} '
    f'{mfu[1]:6.1f}  {e.bound:<14} {m.seconds[1]:5.0f}'
  )


HEAD = (
  f'{"mesh":<24} {"remat":<7} {"rows":>4} {"peak GiB":>8} {"":>5} {"hidden s":>8} {"serial s":>8} {"MFU %":>6} '
  f'{"MFU %":>6}  {"bound by":<14} {"compiled s":>5}'
)


def frontier(found: list[Tried], topology: Topology) -> list[Tried]:
  """Of what fits: nothing else needs less memory and is as fast, by the model's FLOPs a second if nothing overlaps."""
  peak = topology.chip.flops / topology.chip.devices
  fits = [one for one in found if one.measured is not None and one.measured.fits]
  rate = lambda one: one.measured.mfu(one.measured.estimate.serial, peak)

  def beaten(one):
    return any(
      rate(other) > rate(one) and other.measured.memory.peak <= one.measured.memory.peak
      for other in fits
    )

  return sorted((one for one in fits if not beaten(one)), key=rate, reverse=True)
