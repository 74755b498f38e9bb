"""One config on one topology: checks, compilation, and everything that is known then, as one value."""

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
from omni_jax.train.flops import step_flops, StepFlops
from omni_jax.train.plan import Plan


class Measured(NamedTuple):
  """One program.

  Attributes:
    refused: the compiler's message if it does not fit.
    counted: FLOPs by XLA's cost analysis, a loop's body counted once.
    model: analytic FLOPs of one device, and with what remat computes again; None of other programs than the train step.
    seconds: of lowering, of compiling, and the processors' time of the latter.
    characters: of the optimized HLO.
  """

  name: str
  fits: bool
  refused: str
  memory: Memory
  cost: Cost
  estimate: Estimate
  counted: float
  model: tuple[float, float] | None
  seconds: tuple[float, float, float]
  characters: int

  def mfu(self, seconds: float, peak: float) -> float | None:
    """Share of the peak that the model's FLOPs are, if the step takes so long."""
    return self.model[0] / (seconds * peak) if self.model and seconds else None


def make_plan(config: Any, topology: Topology) -> Plan:
  """Raises UserError for a mesh, a batch or a network that does not go with the topology."""
  plan = Plan(config, topology.devices)
  if plan.mesh.size != len(topology.devices):
    raise UserError(
      f'mesh {dict(plan.mesh.shape)} has {plan.mesh.size} of the {len(topology.devices)} devices of '
      f'{topology.name}; set one axis of config.mesh to -1'
    )
  return plan


def check_state(plan: Plan, topology: Topology) -> Mapping[str, float]:
  """Bytes of a device before any activation, by kind.

  Raises:
    UserError: if these alone are more than the device has.
  """
  kinds = state_kinds(plan)
  total = sum(kinds.values())
  if total > topology.hbm:
    said = ', '.join(f'{name} {size / GIB:.1f}' for name, size in kinds.items())
    chips = topology.chips * total / topology.hbm
    enough = 2 ** math.ceil(math.log2(chips))
    ways = plan.mesh.shape
    whole = (
      ways[max(ways, key=lambda axis: ways[axis])] == plan.mesh.size
      and plan.mesh.size > 1
    )
    raise UserError(
      f'does not fit {topology.name}: {total / GIB:.1f} GiB a chip before any activation ({said}), '
      f'{topology.hbm / GIB:.2f} GiB usable; enough is config.mesh.fsdp=-1 on {enough} chips or more'
      + (
        ''
        if whole
        else f' (the mesh is {dict(ways)}: what fsdp and expert do not split is whole on '
        'every chip)'
      )
    )
  return kinds


def measure(
  plan: Plan, topology: Topology, names: Sequence[str], dump: pathlib.Path | None = None
) -> list[Measured]:
  """Compiles programs of a run. A step that does not fit is measured, too."""
  return [
    _measure(plan, topology, name, dump / name if dump else None) for name in names
  ]


def _measure(
  plan: Plan, topology: Topology, name: str, dump: pathlib.Path | None
) -> Measured:
  if dump:
    dump.mkdir(parents=True, exist_ok=True)
  made = compile_program(plan.mesh, programs_of(plan)[name](plan), dump)
  cost = cost_of(hlo.parse(made.text))
  model = None
  if name == 'train':
    flops: StepFlops = step_flops(plan.model_config, plan.budget)
    model = (
      flops.model / plan.mesh.size,
      flops.executed(plan.model_config.decoder.remat) / plan.mesh.size,
    )
  return Measured(
    name,
    not made.refused and made.memory.peak <= topology.hbm,
    made.refused,
    made.memory,
    cost,
    estimate(cost, plan.mesh, topology),
    float(made.counted.get('flops', 0.0)),
    model,
    made.seconds,
    len(made.text),
  )


def advice(plan: Plan, topology: Topology, one: Measured) -> str:
  """The nearest setting that should fit, from how memory scales."""
  fixed = one.memory.peak - one.memory.temporaries
  ways = sharding.ways(plan.mesh, 'batch')
  rows = plan.budget.rows // ways
  room = topology.hbm - fixed
  if room > 0 and (fewer := int(rows * room / one.memory.temporaries)) >= 1:
    return f'config.data.budget.rows={fewer * ways} ({fewer} a chip instead of {rows}) should fit'
  enough = 2 ** math.ceil(math.log2(topology.chips * one.memory.peak / topology.hbm))
  return (
    f'{rows} row{"s" * (rows > 1)} a chip; shorter rows (config.data.budget.length), '
    f"config.model.decoder.remat='full' or {enough} chips should fit"
  )
