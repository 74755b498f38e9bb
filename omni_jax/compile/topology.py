"""Descriptions of devices that this machine does not have, such as `v5p:4x4x4`."""

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
  'it is KIND:SIDES or SLICESxKIND:SIDES, such as v5e:4x4, v5p:4x4x4, 2xv5p:4x4x4 or '
  f'cpu:8; kinds are {", ".join(TPUS)} and cpu'
)


class Topology(NamedTuple):
  """Devices that are only described.

  Attributes:
    name: as the user wrote it.
    chip: what each can do.
    sides: chips along each side of a slice.
    slices: that only the data center network connects.
    devices: as jax lists them; `chip.devices` of each chip.
  """

  name: str
  chip: Chip
  sides: tuple[int, ...]
  slices: int
  devices: Sequence[jax.Device]

  @property
  def chips(self) -> int:
    return self.slices * math.prod(self.sides)

  @property
  def hbm(self) -> float:
    """Bytes that a program can use on one device."""
    return self.chip.hbm / self.chip.devices

  def rings(self) -> tuple[bool, ...]:
    """Returns which sides close to rings."""
    return tuple(n % self.chip.ring == 0 for n in self.sides)


def parse_name(name: str) -> tuple[int, str, tuple[int, ...]]:
  """Returns (slices, kind, sides) of a topology's name; loads no devices.

  Raises:
    UserError: for a name of another form, an unknown kind, or sides that the kind does
      not have.
  """
  match = re.fullmatch(r'(?:(\d+)x)?([a-z]\w*):(\d+(?:x\d+)*)', name)
  if not match or match[2] not in (*TPUS, 'cpu'):
    raise UserError(f'--topology={name!r} is unknown; {FORM}')
  slices = int(match[1] or 1)
  kind = match[2]
  sides = tuple(int(n) for n in match[3].split('x'))
  if (
    len(sides) != CHIPS[kind].sides
    or not slices * math.prod(sides)
    or (kind == 'cpu' and slices > 1)
  ):
    raise UserError(
      f'--topology={name!r}: {kind} has {CHIPS[kind].sides} sides; {FORM}'
    )
  return slices, kind, sides


def pretend(name: str) -> None:
  """Has jax make as many CPU devices as `cpu:N` names; call before it makes any."""
  _, kind, sides = parse_name(name)
  jax.config.update('jax_platforms', 'cpu')
  jax.config.update(
    'jax_enable_compilation_cache', False
  )  # programs for absent devices cannot be read back
  if kind == 'cpu':
    jax.config.update('jax_num_cpu_devices', math.prod(sides))


def describe(name: str) -> Topology:
  """Returns the topology of a name; the devices of `cpu:N` are those of `pretend`.

  Raises:
    UserError: for a topology that does not exist, or without libtpu.
  """
  slices, kind, sides = parse_name(name)
  if kind == 'cpu':
    devices = jax.devices('cpu')
    if len(devices) < math.prod(sides):
      raise UserError(f'--topology={name}: this process has {len(devices)} CPU devices')
    return Topology(name, CHIPS[kind], sides, 1, devices[: math.prod(sides)])
  # What libtpu would otherwise ask of a metadata server that is not there; and several
  # processes may load it.
  for key, value in dict(
    ALLOW_MULTIPLE_LIBTPU_LOAD='1',
    TPU_SKIP_MDS_QUERY='1',
    TPU_ACCELERATOR_TYPE='v5p-8',
    TPU_WORKER_HOSTNAMES='localhost',
  ).items():
    os.environ.setdefault(key, value)
  bounds, hosts = '{}:{}'.format(kind, 'x'.join(map(str, sides))), {}
  if math.prod(sides) == 1:
    hosts = {'chips_per_host_bounds': (1, 1, 1)}
  try:
    description = topologies.get_topology_desc(
      platform='tpu', topology_name=bounds, num_slices=slices, **hosts
    )
  except (RuntimeError, ImportError) as error:
    if 'libtpu' in str(error).lower():
      raise UserError(
        f'--topology={name}: libtpu is not installed; pip install "jax[tpu]"'
      ) from error
    raise UserError(
      f'--topology={name}: {str(error).splitlines()[0]}; {FORM}'
    ) from error
  return Topology(name, CHIPS[kind], sides, slices, description.devices)
