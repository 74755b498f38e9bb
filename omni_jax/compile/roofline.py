"""Computes a lower bound of the seconds of a step: all parts at their full rates."""

from collections.abc import Iterable, Mapping
import functools
from typing import NamedTuple

from jax.sharding import Mesh

from omni_jax.compile.collectives import SLICES
from omni_jax.compile.cost import Cost
from omni_jax.compile.groups import Groups, Members
from omni_jax.compile.schedule import scheduled_seconds, Transfer, Work
from omni_jax.compile.topology import Topology

# Seconds that a collective of few bytes takes on the links of a slice: an assumption.
COLLECTIVE_SECONDS = 5e-6


class Traffic(NamedTuple):
  """The collectives of one kind along the same mesh axes, for one device and one run.

  Attributes:
    kind: opcode, without -start.
    axes: mesh axes, joined by +; with ~ at the end where the groups are a part of them.
    network: 'ICI' for the links between chips, 'DCN' for the data center network.
    count: number of collectives.
    moved: bytes that a device sends, by the ring algorithm.
    seconds: seconds on the network if nothing else uses it.
  """

  kind: str
  axes: str
  network: str
  count: int  # type: ignore[assignment]  # hides tuple.count
  moved: float
  seconds: float

  @property
  def channel(self) -> str:
    """Network and axes, such as 'ICI fsdp'; collectives of one channel take turns."""
    return f'{self.network} {self.axes}'


class Estimate(NamedTuple):
  """The seconds of one run.

  Attributes:
    compute: seconds of all FLOPs at full rate.
    memory: seconds of all bytes of main memory at full rate.
    core: seconds of all instructions one after the other, each taking as long as its
      FLOPs or its bytes, whichever takes longer.
    scheduled: seconds in the order of the compiler's schedule. A collective that starts
      early is hidden behind the work until it is awaited; any other stops the core.
    networks: seconds of all collectives by network and mesh axes.
    traffic: collectives in detail, the longest first.
  """

  compute: float
  memory: float
  core: float
  scheduled: float
  networks: Mapping[str, float]
  traffic: list[Traffic]

  @property
  def overlapped(self) -> float:
    """Seconds if all networks and the core work at the same time."""
    return max(self.core, *self.networks.values(), 0.0)

  @property
  def serial(self) -> float:
    """Seconds if nothing overlaps."""
    return self.core + sum(self.networks.values())

  @property
  def step_seconds(self) -> dict[str, float]:
    """Seconds of the run by how much of the collectives is hidden behind the core."""
    return {
      'overlapped': self.overlapped,
      'scheduled': self.scheduled,
      'serial': self.serial,
    }

  @property
  def terms(self) -> dict[str, float]:
    """Seconds of each part at its full rate: 'compute', 'HBM', networks with axes."""
    return {'compute': self.compute, 'HBM': self.memory, **self.networks}

  @property
  def bound(self) -> str:
    """Name of the largest of `terms`."""
    terms = self.terms
    return max(terms, key=lambda name: terms[name])


def moved_bytes(kind: str, payload: float, members: int) -> float:
  """Returns the bytes that each member sends in a ring, or directly to its target.

  Args:
    kind: opcode of the collective.
    payload: bytes that each member contributes.
    members: number of members of a group.
  """
  others = members - 1
  if kind == 'all-gather':
    return payload * others
  if kind == 'all-reduce':
    return 2 * payload * others / members
  if kind in ('reduce-scatter', 'all-to-all', 'ragged-all-to-all'):
    return payload * others / members
  return payload


class _Side(NamedTuple):
  """A side of the torus that a group extends along.

  Attributes:
    places: number of places of the group along the side.
    directions: 2 if these places close to a ring, 1 if they are a line.
  """

  places: int
  directions: int


def link_seconds(
  kind: str, payload: float, members: Members, topology: Topology
) -> float:
  """Returns the seconds of a collective over the links between chips.

  It uses the sides of the torus that the group extends along: both directions of a
  ring, one direction of a line. The sides are assumed to share the bytes evenly. In an
  all-to-all each link carries, per direction, n / 8 payloads on a ring of n places and
  n / 4 on a line, which is the bound of the bisection.

  Args:
    kind: opcode of the collective.
    payload: bytes that each member contributes.
    members: members of a group.
    topology: topology that the members are a part of.
  """
  rate = topology.chip.link / topology.chip.devices
  moved = moved_bytes(kind, payload, members.count)
  sides = _used_sides(members, topology)
  if not sides:  # cores of one chip
    return moved / (2 * rate)
  if kind == 'collective-permute':
    return payload / rate
  if kind in ('all-to-all', 'ragged-all-to-all'):
    loads = [payload * side.places / (4 * side.directions) for side in sides]
    return max(loads) / rate
  directions = sum(side.directions for side in sides)
  return moved / (rate * directions)


def _used_sides(members: Members, topology: Topology) -> list[_Side]:
  """Returns the sides along which a group has more than one place."""
  torus = zip(members.sides, topology.sides, topology.rings(), strict=False)
  used = []
  for places, chips, is_ring in torus:
    if places > 1:
      directions = 2 if is_ring and places == chips else 1
      used.append(_Side(places, directions))
  return used


def traffic_of(transfer: Transfer, members: Members, topology: Topology) -> Traffic:
  """Returns the traffic of a collective, summed over all its times.

  Args:
    transfer: the collective.
    members: members of one of its groups.
    topology: topology that the members are a part of.
  """
  kind = transfer.kind
  moved = moved_bytes(kind, transfer.payload, members.count)
  if transfer.groups == SLICES:
    network = 'DCN'
    seconds = moved / (topology.chip.dcn / topology.chip.devices)
  else:
    network = 'ICI'
    seconds = link_seconds(kind, transfer.payload, members, topology)
  times = transfer.times
  return Traffic(kind, members.axes, network, times, times * moved, times * seconds)


def _sum_traffic(traffic: Iterable[Traffic]) -> list[Traffic]:
  """Returns the sums by kind, axes and network, the longest first."""
  sums: dict[tuple[str, str, str], Traffic] = {}
  for new in traffic:
    key = (new.kind, new.axes, new.network)
    old = sums.get(key, Traffic(*key, 0, 0.0, 0.0))
    count = old.count + new.count
    moved = old.moved + new.moved
    seconds = old.seconds + new.seconds
    sums[key] = Traffic(*key, count, moved, seconds)
  return sorted(sums.values(), key=lambda traffic: -traffic.seconds)


def core_seconds(work: Work, topology: Topology) -> float:
  """Returns the seconds of one time of an instruction: its FLOPs or bytes at full rate.

  They overlap, so the longer of the two counts.
  """
  compute = work.flops / topology.device_flops
  memory = work.bytes / topology.device_hbm_rate
  return max(compute, memory)


def estimate(cost: Cost, mesh: Mesh, topology: Topology) -> Estimate:
  """Returns a lower bound of the seconds of one run of a program.

  Args:
    cost: cost of one run on one device.
    mesh: mesh that the program was compiled for.
    topology: topology of the mesh's devices.
  """
  groups = Groups(mesh)
  work_seconds = functools.partial(core_seconds, topology=topology)

  def traffic_or_none(transfer: Transfer) -> Traffic | None:
    """Returns the traffic of a collective; None if its groups have one member."""
    if transfer.groups == SLICES:
      members = groups.across_slices()
    else:
      is_permutation = transfer.kind == 'collective-permute'
      members = groups.members(transfer.groups, is_permutation)
    if members.count < 2:
      return None
    return traffic_of(transfer, members, topology)

  def network_seconds(transfer: Transfer) -> tuple[str, float]:
    """Returns the network and the seconds of one time."""
    once = traffic_or_none(transfer._replace(times=1))
    if once is None:
      return '', 0.0
    return once.channel, once.seconds

  single_traffic = []
  for transfer in cost.transfers:
    traffic = traffic_or_none(transfer)
    if traffic is not None:
      single_traffic.append(traffic)
  all_traffic = _sum_traffic(single_traffic)
  networks: dict[str, float] = {}
  for traffic in all_traffic:
    channel = traffic.channel
    networks[channel] = networks.get(channel, 0.0) + traffic.seconds
  return Estimate(
    compute=cost.flops / topology.device_flops,
    memory=cost.bytes / topology.device_hbm_rate,
    core=sum(work.times * work_seconds(work) for work in cost.work),
    scheduled=scheduled_seconds(cost.order, work_seconds, network_seconds),
    networks=networks,
    traffic=all_traffic,
  )
