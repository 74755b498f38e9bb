"""How long a step takes at least: compute, memory and networks at full rate."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from jax.sharding import Mesh

from omni_jax.compile.collectives import SLICES
from omni_jax.compile.cost import Cost
from omni_jax.compile.groups import Groups, Members
from omni_jax.compile.schedule import scheduled_seconds, Transfer, Work
from omni_jax.compile.topology import Topology


class Traffic(NamedTuple):
  """Collectives of one kind along the same mesh axes, of one device and one run.

  Attributes:
    count: how many.
    moved: bytes that a device sends, by the ring algorithm.
    seconds: over the links, or the data center network, alone.
  """

  kind: str
  axes: str
  network: str
  count: int
  moved: float
  seconds: float


class Estimate(NamedTuple):
  """Seconds of one run.

  Attributes:
    compute, memory: all FLOPs, all bytes at full rate.
    core: one instruction after the other, each as long as its FLOPs or its bytes take.
    networks: of all collectives along the same axes.
    scheduled: core and networks as the compiler ordered them: what is begun early hides
      behind the work up to where it is awaited, everything else stops the core.
    traffic: the collectives in detail.
  """

  compute: float
  memory: float
  core: float
  scheduled: float
  networks: Mapping[str, float]
  traffic: list[Traffic]

  @property
  def overlapped(self) -> float:
    """Seconds if collectives hide behind the core and, along other axes, each other."""
    return max(self.core, *self.networks.values(), 0.0)

  @property
  def serial(self) -> float:
    """Seconds if nothing overlaps."""
    return self.core + sum(self.networks.values())

  @property
  def bound(self) -> str:
    """The largest of compute, memory and the networks."""
    terms = {'compute': self.compute, 'HBM': self.memory, **self.networks}
    return max(terms, key=terms.get)


def moved_bytes(kind: str, payload: float, members: int) -> float:
  """Returns the bytes that each member sends in a ring, or straight to its goal."""
  others = members - 1
  if kind == 'all-gather':
    return payload * others
  if kind == 'all-reduce':
    return 2 * payload * others / members
  if kind in ('reduce-scatter', 'all-to-all', 'ragged-all-to-all'):
    return payload * others / members
  return payload


def link_seconds(
  kind: str, payload: float, members: Members, topology: Topology
) -> float:
  """Returns the seconds of a collective over the links between chips.

  It goes along the sides of the torus that the group has places in: in both directions
  of a ring, in one of a line. An all-to-all passes each link on its way: n / 8 payloads
  a ring of n, n / 4 a line (each direction; the way that the bisection bounds it). How
  the sides share is taken as even.
  """
  rate = topology.chip.link / topology.chip.devices
  sides = [
    (n, ring and n == whole)
    for n, whole, ring in zip(
      members.sides, topology.sides, topology.rings(), strict=False
    )
    if n > 1
  ]
  if not sides:  # cores of one chip
    return moved_bytes(kind, payload, members.count) / (2 * rate)
  if kind in ('all-to-all', 'ragged-all-to-all'):
    return max(payload * n / (8 if ring else 4) for n, ring in sides) / rate
  if kind == 'collective-permute':
    return payload / rate
  return moved_bytes(kind, payload, members.count) / (
    rate * sum(2 if ring else 1 for _, ring in sides)
  )


def traffic_of(transfer: Transfer, members: Members, topology: Topology) -> Traffic:
  """Returns the traffic of a collective, all of its times."""
  kind, payload, times = transfer.kind, transfer.payload, transfer.times
  moved = moved_bytes(kind, payload, members.count)
  if transfer.groups == SLICES:
    network = 'DCN'
    seconds = moved / (topology.chip.dcn / topology.chip.devices)
  else:
    network = 'ICI'
    seconds = link_seconds(kind, payload, members, topology)
  return Traffic(kind, members.axes, network, times, times * moved, times * seconds)


def _summed(traffic: Iterable[Traffic]) -> list[Traffic]:
  """Returns the sums by kind, axes and network, those that take longest first."""
  sums: dict[tuple[str, str, str], Traffic] = {}
  for new in traffic:
    key = new.kind, new.axes, new.network
    old = sums.get(key, Traffic(*key, 0, 0.0, 0.0))
    count = old.count + new.count
    moved = old.moved + new.moved
    seconds = old.seconds + new.seconds
    sums[key] = Traffic(*key, count, moved, seconds)
  return sorted(sums.values(), key=lambda one: -one.seconds)


def estimate(cost: Cost, mesh: Mesh, topology: Topology) -> Estimate:
  """Returns how long a program of this cost takes at least."""
  chip = topology.chip
  groups = Groups(mesh)
  flops_rate = chip.flops / chip.devices
  hbm_rate = chip.hbm_rate / chip.devices

  def core_seconds(work: Work) -> float:
    return max(work.flops / flops_rate, work.bytes / hbm_rate)

  def traffic(transfer: Transfer) -> Traffic | None:
    if transfer.groups == SLICES:
      members = groups.across()
    else:
      is_permutation = transfer.kind == 'collective-permute'
      members = groups.members(transfer.groups, is_permutation)
    return traffic_of(transfer, members, topology) if members.count > 1 else None

  def network_seconds(transfer: Transfer) -> tuple[str, float]:
    """Returns the network and the seconds of one time."""
    once = traffic(transfer._replace(times=1))
    return (f'{once.network} {once.axes}', once.seconds) if once else ('', 0.0)

  collectives = _summed(filter(None, map(traffic, cost.transfers)))
  networks: dict[str, float] = {}
  for one in collectives:
    name = f'{one.network} {one.axes}'
    networks[name] = networks.get(name, 0.0) + one.seconds
  return Estimate(
    compute=cost.flops / flops_rate,
    memory=cost.bytes / hbm_rate,
    core=sum(work.times * core_seconds(work) for work in cost.work),
    scheduled=scheduled_seconds(cost.order, core_seconds, network_seconds),
    networks=networks,
    traffic=collectives,
  )
