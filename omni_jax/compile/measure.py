"""Compiles the programs of a config for a topology and measures what each takes."""

from collections.abc import Mapping, Sequence
import math
import pathlib
from typing import Any, NamedTuple

from omni_jax import sharding
from omni_jax.chips import GIB
from omni_jax.compile import hlo
from omni_jax.compile.cost import Cost, cost_of
from omni_jax.compile.memory import Memory
from omni_jax.compile.program import compile_program, programs_of, state_kinds
from omni_jax.compile.roofline import Estimate, estimate
from omni_jax.compile.topology import Topology
from omni_jax.errors import UserError
from omni_jax.train.flops import step_flops
from omni_jax.train.plan import Plan


class AnalyticFlops(NamedTuple):
  """FLOPs of a step on one device, counted from the config.

  Attributes:
    model: those that the model needs.
    executed: with those that remat computes again.
  """

  model: float
  executed: float


class CompileSeconds(NamedTuple):
  """How long a program took to compile.

  Attributes:
    tracing: and lowering.
    processors: time of all processors while compiling.
  """

  tracing: float
  compiling: float
  processors: float


class Measurement(NamedTuple):
  """What one program takes.

  Attributes:
    refusal: the compiler's message if it does not fit, else ''.
    xla_flops: FLOPs by XLA's cost analysis, a loop's body counted once.
    analytic: None of other programs than the train step.
    characters: of the optimized HLO.
  """

  name: str
  fits: bool
  refusal: str
  memory: Memory
  cost: Cost
  estimate: Estimate
  xla_flops: float
  analytic: AnalyticFlops | None
  seconds: CompileSeconds
  characters: int

  def mfu(self, seconds: float, peak: float) -> float | None:
    """Returns the model's FLOPs as a share of the peak, if the step takes so long."""
    if not self.analytic or not seconds:
      return None
    return self.analytic.model / (seconds * peak)


def make_plan(config: Any, topology: Topology) -> Plan:
  """Returns the plan of a run on a topology.

  Raises:
    UserError: for a mesh, a batch or a network that does not go with the topology.
  """
  plan = Plan(config, topology.devices)
  if plan.mesh.size != len(topology.devices):
    raise UserError(
      f'mesh {dict(plan.mesh.shape)} has {plan.mesh.size} of the {len(topology.devices)} devices of '
      f'{topology.name}; set one axis of config.mesh to -1'
    )
  return plan


def check_state(plan: Plan, topology: Topology) -> Mapping[str, float]:
  """Returns the bytes of a device before any activation, by kind.

  Raises:
    UserError: if these alone are more than the device has.
  """
  kinds = state_kinds(plan)
  total = sum(kinds.values())
  if total > topology.hbm:
    parts = ', '.join(f'{name} {size / GIB:.1f}' for name, size in kinds.items())
    chips = topology.chips * total / topology.hbm
    enough = 2 ** math.ceil(math.log2(chips))
    sizes = dict(plan.mesh.shape)
    one_axis = max(sizes.values()) == plan.mesh.size and plan.mesh.size > 1
    hint = (
      ''
      if one_axis
      else f' (the mesh is {sizes}: what fsdp and expert do not split is whole on '
      'every chip)'
    )
    raise UserError(
      f'does not fit {topology.name}: {total / GIB:.1f} GiB a chip before any activation ({parts}), '
      f'{topology.hbm / GIB:.2f} GiB usable; enough is config.mesh.fsdp=-1 on {enough} chips or more'
      f'{hint}'
    )
  return kinds


def measure_programs(
  plan: Plan, topology: Topology, names: Sequence[str], dump: pathlib.Path | None = None
) -> list[Measurement]:
  """Compiles programs of a run. A step that does not fit is measured, too."""
  return [
    _measure(plan, topology, name, dump / name if dump else None) for name in names
  ]


def _measure(
  plan: Plan, topology: Topology, name: str, dump: pathlib.Path | None
) -> Measurement:
  if dump:
    dump.mkdir(parents=True, exist_ok=True)
  program = programs_of(plan.model_config)[name](plan)
  compiled = compile_program(plan.mesh, program, dump)
  cost = cost_of(hlo.parse(compiled.text))
  return Measurement(
    name=name,
    fits=not compiled.refusal and compiled.memory.peak <= topology.hbm,
    refusal=compiled.refusal,
    memory=compiled.memory,
    cost=cost,
    estimate=estimate(cost, plan.mesh, topology),
    xla_flops=float(compiled.xla_cost.get('flops', 0.0)),
    analytic=_analytic_flops(plan) if name == 'train' else None,
    seconds=CompileSeconds(*compiled.seconds),
    characters=len(compiled.text),
  )


def _analytic_flops(plan: Plan) -> AnalyticFlops:
  flops = step_flops(plan.model_config, plan.budget)
  executed = flops.executed(plan.model_config.decoder.remat)
  return AnalyticFlops(flops.model / plan.mesh.size, executed / plan.mesh.size)


def advice(plan: Plan, topology: Topology, measurement: Measurement) -> str:
  """Returns the nearest setting that should fit, from how memory scales."""
  memory = measurement.memory
  ways = sharding.ways(plan.mesh, 'batch')
  rows = plan.budget.rows // ways
  room = topology.hbm - (memory.peak - memory.temporaries)
  if room > 0 and (fewer := int(rows * room / memory.temporaries)) >= 1:
    return (
      f'config.data.budget.rows={fewer * ways} ({fewer} a chip instead of {rows}) '
      'should fit'
    )
  enough = 2 ** math.ceil(math.log2(topology.chips * memory.peak / topology.hbm))
  return (
    f'{rows} row{"s" * (rows > 1)} a chip; shorter rows (config.data.budget.length), '
    f"config.model.decoder.remat='full' or {enough} chips should fit"
  )
