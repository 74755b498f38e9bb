"""Describes devices that this machine does not have, such as `v5p:4x4x4`."""

from collections.abc import Sequence
import math
import os
import re
from typing import NamedTuple

import jax
from jax.experimental import topologies

from omni_jax.chips import Chip, CHIPS
from omni_jax.errors import UserError

TPUS = tuple(name for name, chip in CHIPS.items() if chip.kind.startswith('TPU'))
FORM = (
  'give KIND:SIDES or SLICESxKIND:SIDES, such as v5e:4x4, v5p:4x4x4, 2xv5p:4x4x4 or '
  f'cpu:8; the kinds are {", ".join(TPUS)} and cpu'
)
# The first allows several processes to load libtpu. The others are what libtpu would
# otherwise request from a metadata server, which does not exist here.
_LIBTPU_VARIABLES = {
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5p-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
}


class Topology(NamedTuple):
  """Devices that are described but need not exist.

  Attributes:
    name: name of the topology as the user wrote it.
    chip: sizes and rates of each chip.
    sides: number of chips along each side of a slice.
    slices: number of slices, which only the data center network connects.
    devices: devices in the order of JAX, `chip.devices` for each chip.
  """

  name: str
  chip: Chip
  sides: tuple[int, ...]
  slices: int
  devices: Sequence[jax.Device]

  @property
  def chips(self) -> int:
    """Number of chips of all slices."""
    return self.slices * math.prod(self.sides)

  @property
  def hbm(self) -> float:
    """Bytes that a program can use on one device."""
    return self.chip.hbm / self.chip.devices

  @property
  def device_flops(self) -> float:
    """FLOPs per second of one device at full rate."""
    return self.chip.device_flops

  @property
  def device_hbm_rate(self) -> float:
    """Bytes per second between one device and its main memory at full rate."""
    return self.chip.hbm_rate / self.chip.devices

  def rings(self) -> tuple[bool, ...]:
    """Returns for each side of a slice whether its links close to a ring."""
    return tuple(n % self.chip.ring == 0 for n in self.sides)


def parse_name(name: str) -> tuple[int, str, tuple[int, ...]]:
  """Returns the slices, the kind and the sides that a name gives; loads no devices.

  Raises:
    UserError: for a name of another form, an unknown kind, or a wrong number of sides.
  """
  match = re.fullmatch(r'(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)', name)
  if not match or match[2] not in (*TPUS, 'cpu'):
    raise UserError(f'--topology={name!r} is unknown; {FORM}')
  slices = int(match[1] or 1)
  kind = match[2]
  sides = tuple(int(n) for n in match[3].split('x'))
  wanted = CHIPS[kind].sides
  is_empty = not slices * math.prod(sides)
  has_cpu_slices = kind == 'cpu' and slices > 1
  if len(sides) != wanted or is_empty or has_cpu_slices:
    raise UserError(f'--topology={name!r}: {kind} has {wanted} sides; {FORM}')
  return slices, kind, sides


def pretend(name: str) -> None:
  """Makes JAX create N CPU devices for `cpu:N`; call it before JAX creates any.

  The compilation cache is turned off, because programs for devices that do not exist
  cannot be read back from it.
  """
  _, kind, sides = parse_name(name)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update('jax_enable_compilation_cache', False)
  if kind == 'cpu':
    jax.config.update('jax_num_cpu_devices', math.prod(sides))


def describe(name: str) -> Topology:
  """Returns the topology of a name; the devices of `cpu:N` are those of `pretend`.

  Raises:
    UserError: if the topology does not exist, libtpu is not installed, or this process
      has too few CPU devices.
  """
  slices, kind, sides = parse_name(name)
  count = math.prod(sides)
  if kind == 'cpu':
    devices = jax.devices('cpu')
    if len(devices) < count:
      raise UserError(f'--topology={name}: this process has {len(devices)} CPU devices')
    return Topology(name, CHIPS[kind], sides, 1, devices[:count])
  for variable, value in _LIBTPU_VARIABLES.items():
    os.environ.setdefault(variable, value)
  slice_name = f'{kind}:{"x".join(map(str, sides))}'
  host_bounds = {'chips_per_host_bounds': (1, 1, 1)} if count == 1 else {}
  try:
    description = topologies.get_topology_desc(
      platform='tpu', topology_name=slice_name, num_slices=slices, **host_bounds
    )
  except (RuntimeError, ImportError) as error:
    if 'libtpu' in str(error).lower():
      problem = 'libtpu is not installed; pip install "jax[tpu]"'
    else:
      problem = f'{str(error).splitlines()[0]}; {FORM}'
    raise UserError(f'--topology={name}: {problem}') from error
  return Topology(name, CHIPS[kind], sides, slices, description.devices)
