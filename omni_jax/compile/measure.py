"""Compiles the programs of a config for a topology and measures each of them."""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import NamedTuple

from jax.sharding import Mesh
from ml_collections import ConfigDict

from omni_jax import sharding
from omni_jax.chips import GIB
from omni_jax.compile import hlo
from omni_jax.compile.cost import Cost, cost_of
from omni_jax.compile.hlo import main_memory_bytes
from omni_jax.compile.memory import Memory
from omni_jax.compile.program import (
  build_program,
  compile_program,
  CompileSeconds,
  state_kinds,
)
from omni_jax.compile.roofline import COLLECTIVE_SECONDS, Estimate, estimate
from omni_jax.compile.topology import Topology
from omni_jax.errors import UserError
from omni_jax.nn.decoder import Remat
from omni_jax.train.flops import step_flops
from omni_jax.train.plan import Plan


class AnalyticFlops(NamedTuple):
  """The FLOPs of a step on one device, counted from the config.

  Attributes:
    model: FLOPs that the model needs.
    executed: FLOPs of the model and of what remat computes again.
  """

  model: float
  executed: float


class Measurement(NamedTuple):
  """The memory, the cost and the seconds of one program.

  Attributes:
    name: name of the program, such as 'train'.
    mesh: sizes of the axes of its mesh.
    fits: whether the program fits into the memory of a device.
    refusal: the compiler's message if it does not fit, else ''.
    memory: bytes on one device.
    cost: cost of one run on one device.
    estimate: lower bound of the seconds of one run.
    xla_flops: FLOPs by XLA's cost analysis, which counts a loop's body once.
    analytic: FLOPs counted from the config; None for all but the train step.
    seconds: seconds of the compilation.
    characters: number of characters of the optimized HLO.
    floor: seconds of reading every argument that the program uses once from the main
      memory, plus COLLECTIVE_SECONDS for each of its collectives. Decoding an id cannot
      be faster: it reads all weights and the cache.
  """

  name: str
  mesh: Mapping[str, int]
  fits: bool
  refusal: str
  memory: Memory
  cost: Cost
  estimate: Estimate
  xla_flops: float
  analytic: AnalyticFlops | None
  seconds: CompileSeconds
  characters: int
  floor: float

  def mfu(self, seconds: float, peak: float) -> float | None:
    """Returns the share of the peak that the model's FLOPs use.

    Args:
      seconds: seconds of a step.
      peak: FLOPs per second of one device at full rate.

    Returns:
      A number between 0 and 1; None if the FLOPs are not known or `seconds` is 0.
    """
    if not self.analytic or not seconds:
      return None
    return self.analytic.model / (seconds * peak)


def make_plan(config: ConfigDict, topology: Topology) -> Plan:
  """Returns the plan of a run on a topology.

  Raises:
    UserError: if the mesh, the batch or the network does not suit the topology.
  """
  plan = Plan(config, topology.devices)
  devices = len(topology.devices)
  if plan.mesh.size != devices:
    raise UserError(
      f'mesh {dict(plan.mesh.shape)} has {plan.mesh.size} of the {devices} devices of '
      f'{topology.name}; set one axis of config.mesh to -1'
    )
  return plan


def check_state(plan: Plan, topology: Topology) -> Mapping[str, float]:
  """Returns the bytes on a device before any activation, by kind.

  Raises:
    UserError: if these bytes alone exceed the memory of a device.
  """
  kinds = state_kinds(plan)
  total = sum(kinds.values())
  if total <= topology.hbm:
    return kinds
  parts = ', '.join(f'{name} {size / GIB:.1f}' for name, size in kinds.items())
  enough = _chips_for(total, topology)
  axes = dict(plan.mesh.shape)
  has_one_axis = max(axes.values()) == plan.mesh.size and plan.mesh.size > 1
  hint = ''
  if not has_one_axis:
    hint = (
      f' (the mesh is {axes}: what fsdp and expert do not split is replicated on every '
      'chip)'
    )
  raise UserError(
    f'does not fit {topology.name}: {total / GIB:.1f} GiB a chip before any activation '
    f'({parts}), {topology.hbm / GIB:.2f} GiB usable; set config.mesh.fsdp=-1 on '
    f'{enough} chips or more{hint}'
  )


def _chips_for(size: float, topology: Topology) -> int:
  """Returns how many chips, a power of two, are enough for `size` bytes per device."""
  chips = topology.chips * size / topology.hbm
  return 2 ** math.ceil(math.log2(chips))


def measure_programs(
  plan: Plan,
  topology: Topology,
  names: Sequence[str],
  mesh: Mesh,
  dump: pathlib.Path | None = None,
) -> list[Measurement]:
  """Compiles programs of a run and returns their measurements.

  A program that does not fit is measured, too.

  Args:
    plan: plan of the run on the topology.
    topology: devices to compile for.
    names: names of the programs, of `program.program_names`.
    mesh: mesh of the programs of generation.
    dump: folder that keeps what the compiler writes, in a folder for each program.
  """
  measurements = []
  for name in names:
    folder = dump / name if dump else None
    measurements.append(_measure(plan, topology, name, mesh, folder))
  return measurements


def _measure(
  plan: Plan, topology: Topology, name: str, mesh: Mesh, dump: pathlib.Path | None
) -> Measurement:
  """Compiles one program and returns its measurement."""
  if dump:
    dump.mkdir(parents=True, exist_ok=True)
  program = build_program(name, plan, mesh)
  compiled = compile_program(program, dump)
  module = hlo.parse(compiled.text)
  cost = cost_of(module)
  arguments = sum(main_memory_bytes(x.shapes) for x in module.entry.parameters())
  estimated = estimate(cost, program.mesh, topology)
  collectives = sum(traffic.count for traffic in estimated.traffic)
  return Measurement(
    name=name,
    mesh=dict(program.mesh.shape),
    fits=not compiled.refusal and compiled.memory.peak <= topology.hbm,
    refusal=compiled.refusal,
    memory=compiled.memory,
    cost=cost,
    estimate=estimated,
    xla_flops=float(compiled.xla_cost.get('flops', 0.0)),
    analytic=_analytic_flops(plan) if name == 'train' else None,
    seconds=compiled.seconds,
    characters=len(compiled.text),
    floor=arguments / topology.device_hbm_rate + collectives * COLLECTIVE_SECONDS,
  )


def _analytic_flops(plan: Plan) -> AnalyticFlops:
  """Returns the FLOPs of a train step on one device, counted from the config."""
  flops = step_flops(plan.model_config, plan.budget)
  executed = flops.executed(Remat(plan.model_config.decoder.remat))
  return AnalyticFlops(flops.model / plan.mesh.size, executed / plan.mesh.size)


def advice(plan: Plan, topology: Topology, measurement: Measurement) -> str:
  """Returns a sentence with the nearest setting that should fit.

  It assumes that temporaries grow with the rows and shrink with the chips.

  Args:
    plan: plan of the run on the topology.
    topology: topology that the program does not fit.
    measurement: measurement of the program.
  """
  memory = measurement.memory
  shards = sharding.num_shards(plan.mesh, 'batch')
  rows = plan.budget.rows // shards
  room = topology.hbm - (memory.peak - memory.temporaries)
  fitting_rows = 0
  if room > 0:
    fitting_rows = int(rows * room / memory.temporaries)
  if fitting_rows >= 1:
    return (
      f'config.data.budget.rows={fitting_rows * shards} ({fitting_rows} a chip instead '
      f'of {rows}) should fit'
    )
  enough = _chips_for(memory.peak, topology)
  count = '1 row' if rows == 1 else f'{rows} rows'
  return (
    f'there are {count} a chip; shorter rows (config.data.budget.length), '
    f"config.model.decoder.remat='full' or {enough} chips should fit"
  )
