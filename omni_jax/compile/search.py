"""`--search`: tries rows a chip, remat and mesh splits of a config.

It shows what fits, and how long a step takes at least.
"""

from collections.abc import Callable
import copy
from typing import Any, NamedTuple

from omni_jax import sharding
from omni_jax.compile.measure import (
  check_state,
  make_plan,
  measure_programs,
  Measurement,
)
from omni_jax.compile.memory import Memory
from omni_jax.compile.topology import Topology
from omni_jax.errors import UserError
from omni_jax.modalities.devices import TABLES
from omni_jax.nn.decoder import Remat

ROWS = (1, 2, 4, 8, 16)  # a chip
# From the least memory to the most.
REMATS = (Remat.FULL, Remat.ATTENTION, Remat.DOTS, Remat.NONE)


class Trial(NamedTuple):
  """A setting and what came of it.

  Attributes:
    changes: config names (after `config.`) and values.
    rows: a chip.
    measurement: None where it was refused before compiling.
    refusal: why it was refused.
  """

  changes: dict[str, Any]
  rows: int
  measurement: Measurement | None
  refusal: str = ''

  @property
  def fits(self) -> bool:
    return self.measurement is not None and self.measurement.fits


def with_changes(config: Any, changes: dict[str, Any]) -> Any:
  """Returns a copy of the config with other values."""
  copied = copy.deepcopy(config).unlock()
  for name, value in changes.items():
    *path, last = name.split('.')
    part = copied
    for key in path:
      part = part[key]
    if isinstance(value, dict):
      part[last].update(value)
    else:
      part[last] = value
  rows = changes['data.budget.rows']
  for name in TABLES.autoencoders():
    if name in copied:  # a part of its own: its stage's batch is split as rows are
      copied[name].batch = -(-copied[name].batch // rows) * rows
  return copied.lock()


def search(config: Any, topology: Topology, log: Callable[[str], None]) -> list[Trial]:
  """Tries every mesh split and remat.

  Each is tried with one row a chip, then with the most rows that should fit by what the
  first took. More memory for activations is not tried where less of it did not fit with
  one row.
  """
  trials: list[Trial] = []

  def attempt(split: dict[str, int], remat: Remat, rows: int) -> Trial:
    trial = _attempt(config, topology, split, remat, rows)
    trials.append(trial)
    log(table_row(trial, topology))
    return trial

  experts = config.model.decoder.experts
  is_cpu = topology.devices[0].platform == 'cpu'
  for split in sharding.splits(len(topology.devices), topology.slices, experts):
    for remat in REMATS:
      if remat == Remat.ATTENTION and is_cpu:
        continue  # pretended CPUs have no kernel whose result could be kept
      first = attempt(split, remat, 1)
      if not first.fits:
        break
      most = _most_rows(first.measurement.memory, topology)
      if most > 1:
        attempt(split, remat, most)
  return trials


def _most_rows(memory: Memory, topology: Topology) -> int:
  """Returns how many rows a chip should fit, from what one row takes."""
  room = topology.hbm - memory.peak
  return max(n for n in ROWS if n == 1 or (n - 1) * memory.temporaries <= room)


def _attempt(
  config: Any, topology: Topology, split: dict[str, int], remat: Remat, rows: int
) -> Trial:
  changes = {
    'mesh': split,
    'model.decoder.remat': str(remat),
    'data.budget.rows': rows * len(topology.devices),
  }
  try:
    plan = make_plan(with_changes(config, changes), topology)
    check_state(plan, topology)
  except UserError as error:
    return Trial(changes, rows, None, str(error).split(';')[0])
  (measurement,) = measure_programs(plan, topology, ['train'])
  return Trial(changes, rows, measurement)


TABLE_HEAD = (
  f'{"mesh":<24} {"remat":<7} {"rows":>4} {"peak GiB":>8} {"":>5} {"hidden s":>8} '
  f'{"serial s":>8} {"MFU %":>6} {"MFU %":>6}  {"bound by":<14} {"compiled s":>5}'
)


def table_row(trial: Trial, topology: Topology) -> str:
  """Returns one row of the table below TABLE_HEAD."""
  axes = [f'{axis}={n}' for axis, n in trial.changes['mesh'].items() if n > 1]
  mesh = ' '.join(axes) or '1'
  start = f'{mesh:<24} {trial.changes["model.decoder.remat"]:<7} {trial.rows:>4}'
  measurement = trial.measurement
  if measurement is None:
    return f'{start}  {trial.refusal}'
  estimate = measurement.estimate
  chip = topology.chip
  mfu = [
    100 * measurement.mfu(seconds, chip.flops / chip.devices)
    for seconds in (estimate.overlapped, estimate.serial)
  ]
  fits = 'fits' if measurement.fits else 'no'
  return (
    f'{start} {measurement.memory.peak / 2**30:8.2f} {fits:>5} '
    f'{estimate.overlapped:8.3f} {estimate.serial:8.3f} {mfu[0]:6.1f} {mfu[1]:6.1f}  '
    f'{estimate.bound:<14} {measurement.seconds.compiling:5.0f}'
  )


def frontier(trials: list[Trial], topology: Topology) -> list[Trial]:
  """Returns the trials that fit and that no other beats, the fastest first.

  Another beats a trial if it needs no more memory and is faster, by the model's FLOPs a
  second if nothing overlaps.
  """
  peak = topology.chip.flops / topology.chip.devices
  fitting = [trial for trial in trials if trial.fits]

  def rate(trial: Trial) -> float:
    return trial.measurement.mfu(trial.measurement.estimate.serial, peak)

  def memory(trial: Trial) -> float:
    return trial.measurement.memory.peak

  def is_beaten(trial: Trial) -> bool:
    return any(
      rate(other) > rate(trial) and memory(other) <= memory(trial) for other in fitting
    )

  unbeaten = [trial for trial in fitting if not is_beaten(trial)]
  return sorted(unbeaten, key=rate, reverse=True)
