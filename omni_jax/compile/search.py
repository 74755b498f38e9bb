"""Implements `--search`: tries mesh splits, remats and rows per chip of a config.

The results show what fits, and a lower bound of the seconds of a step.
"""

from collections.abc import Callable
import copy
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from omni_jax import sharding
from omni_jax.chips import GIB
from omni_jax.compile.measure import (
  check_state,
  make_plan,
  measure_programs,
  Measurement,
)
from omni_jax.compile.memory import Memory
from omni_jax.compile.summary import axes_text
from omni_jax.compile.topology import Topology
from omni_jax.errors import UserError
from omni_jax.modalities.devices import TABLES
from omni_jax.nn.decoder import Remat

ROWS = (1, 2, 4, 8, 16)  # rows per chip that are tried
# Ordered from the least memory to the most.
REMATS = (Remat.FULL, Remat.ATTENTION, Remat.DOTS, Remat.NONE)


class Trial(NamedTuple):
  """A setting and its result.

  Attributes:
    changes: changed values by their keys in the config.
    rows: rows per chip.
    measurement: measurement of the train step; None if the setting was refused before
      compiling.
    refusal: why the setting was refused, or ''.
  """

  changes: dict[str, Any]
  rows: int
  measurement: Measurement | None
  refusal: str = ''

  @property
  def fits(self) -> bool:
    """True if the train step was compiled and fits."""
    return self.measurement is not None and self.measurement.fits


def with_changes(config: ConfigDict, changes: dict[str, Any]) -> ConfigDict:
  """Returns a locked copy of the config with changed values.

  The batches of the autoencoders' stages are rounded up to a multiple of the rows.

  Args:
    config: config of a run.
    changes: new values by their keys; `data.budget.rows` is required. A dictionary
      updates the part of the config under its key.
  """
  changed = copy.deepcopy(config).unlock()
  for name, value in changes.items():
    *path, last = name.split('.')
    part = changed
    for key in path:
      part = part[key]
    if isinstance(value, dict):
      part[last].update(value)
    else:
      part[last] = value
  rows = changes['data.budget.rows']
  for name in TABLES.autoencoders():
    if name in changed:  # its stage has a batch of its own, which is split like rows
      changed[name].batch = -(-changed[name].batch // rows) * rows
  return changed.lock()


def search(
  config: ConfigDict, topology: Topology, log: Callable[[str], None]
) -> list[Trial]:
  """Returns the trials of every mesh split and remat.

  Each pair is tried with one row per chip, then with the most rows that should fit,
  judging by the memory of the first trial. A remat that needs more memory is skipped
  where one that needs less did not fit with one row.

  Args:
    config: config of a run.
    topology: devices to compile for.
    log: called with the table row of each finished trial.
  """
  trials: list[Trial] = []

  def attempt(split: dict[str, int], remat: Remat, rows: int) -> Trial:
    trial = _attempt(config, topology, split, remat, rows)
    trials.append(trial)
    log(table_row(trial, topology))
    return trial

  experts = config.model.decoder.experts
  is_cpu = topology.devices[0].platform == 'cpu'
  for split in sharding.candidate_meshes(
    len(topology.devices), topology.slices, experts
  ):
    for remat in REMATS:
      if remat == Remat.ATTENTION and is_cpu:
        continue  # there is no attention kernel on CPUs whose result could be kept
      first = attempt(split, remat, 1)
      if not first.fits:
        break
      assert first.measurement is not None
      rows = _most_rows(first.measurement.memory, topology)
      if rows > 1:
        attempt(split, remat, rows)
  return trials


def _most_rows(memory: Memory, topology: Topology) -> int:
  """Returns the most rows per chip that should fit, from the memory of one row."""
  room = topology.hbm - memory.peak
  most = 1
  for rows in ROWS:
    if (rows - 1) * memory.temporaries <= room:
      most = rows
  return most


def _attempt(
  config: ConfigDict, topology: Topology, split: dict[str, int], remat: Remat, rows: int
) -> Trial:
  """Returns the trial of one setting, compiled only if its state fits."""
  changes = {
    'mesh': split,
    'model.decoder.remat': str(remat),
    'data.budget.rows': rows * len(topology.devices),
  }
  try:
    plan = make_plan(with_changes(config, changes), topology)
    check_state(plan, topology)
  except UserError as error:
    problem, _, _ = str(error).partition(';')
    return Trial(changes, rows, None, problem)
  (measurement,) = measure_programs(plan, topology, ['train'], plan.mesh)
  return Trial(changes, rows, measurement)


TABLE_HEAD = (
  f'{"mesh":<24} {"remat":<7} {"rows":>4} {"peak GiB":>8} {"":>5} {"hidden s":>8} '
  f'{"serial s":>8} {"MFU %":>6} {"MFU %":>6}  {"bound by":<14} {"compiled s":>5}'
)


def table_row(trial: Trial, topology: Topology) -> str:
  """Returns a trial as a row of the table that TABLE_HEAD begins."""
  mesh = axes_text(trial.changes['mesh']) or '1'
  start = f'{mesh:<24} {trial.changes["model.decoder.remat"]:<7} {trial.rows:>4}'
  measurement = trial.measurement
  if measurement is None:
    return f'{start}  {trial.refusal}'
  estimate = measurement.estimate
  peak = topology.device_flops
  mfu_hidden = 100 * (measurement.mfu(estimate.overlapped, peak) or 0.0)
  mfu_serial = 100 * (measurement.mfu(estimate.serial, peak) or 0.0)
  fits = 'fits' if measurement.fits else 'no'
  return (
    f'{start} {measurement.memory.peak / GIB:8.2f} {fits:>5} '
    f'{estimate.overlapped:8.3f} {estimate.serial:8.3f} '
    f'{mfu_hidden:6.1f} {mfu_serial:6.1f}  '
    f'{estimate.bound:<14} {measurement.seconds.compiling:5.0f}'
  )


def frontier(trials: list[Trial], topology: Topology) -> list[Trial]:
  """Returns the trials that fit and that no other trial beats, the fastest first.

  A trial is beaten by one that is faster and needs no more memory. Speed is the MFU if
  nothing overlaps.
  """
  peak = topology.device_flops
  fitting = [trial for trial in trials if trial.fits]

  def rate(trial: Trial) -> float:
    assert trial.measurement is not None
    return trial.measurement.mfu(trial.measurement.estimate.serial, peak) or 0.0

  def memory(trial: Trial) -> float:
    assert trial.measurement is not None
    return trial.measurement.memory.peak

  def is_beaten(trial: Trial) -> bool:
    return any(
      rate(other) > rate(trial) and memory(other) <= memory(trial) for other in fitting
    )

  unbeaten = [trial for trial in fitting if not is_beaten(trial)]
  return sorted(unbeaten, key=rate, reverse=True)
