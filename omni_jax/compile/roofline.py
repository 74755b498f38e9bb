"""How long a step takes at least: compute, memory and every network against the chip's figures."""

from collections.abc import Mapping
from typing import NamedTuple

from jax.sharding import Mesh

from omni_jax.compile.collectives import SLICES
from omni_jax.compile.cost import Cost
from omni_jax.compile.groups import Groups, Members
from omni_jax.compile.schedule import scheduled_seconds, Transfer
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
    scheduled: core and networks as the compiler ordered them: what is begun early hides behind the work up to where it
      is awaited, everything else stops the core.
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
    """If collectives are hidden behind the core's work, and behind each other along other axes."""
    return max(self.core, *self.networks.values(), 0.0)

  @property
  def serial(self) -> float:
    """If nothing overlaps."""
    return self.core + sum(self.networks.values())

  @property
  def bound(self) -> str:
    """The largest of compute, memory and the networks."""
    terms = {'compute': self.compute, 'HBM': self.memory, **self.networks}
    return max(terms, key=terms.get)


def moved_bytes(kind: str, payload: float, members: int) -> float:
  """Bytes that each of the members sends in a ring, or straight to its goal."""
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
  """Along the sides of the torus that the group has places in: both directions of a ring, one of a line.

  An all-to-all passes each link on its way: n / 8 payloads a ring of n, n / 4 a line (each direction; the way that the
  bisection bounds it). How the sides share is taken as even.
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


def traffic_of(one: Transfer, members: Members, topology: Topology) -> Traffic:
  """One collective, all of its times."""
  moved = moved_bytes(one.kind, one.payload, members.count)
  if one.groups == SLICES:
    seconds, network = moved / (topology.chip.dcn / topology.chip.devices), 'DCN'
  else:
    seconds, network = link_seconds(one.kind, one.payload, members, topology), 'ICI'
  return Traffic(
    one.kind, members.axes, network, one.times, one.times * moved, one.times * seconds
  )


def estimate(cost: Cost, mesh: Mesh, topology: Topology) -> Estimate:
  """Of a program's cost."""
  chip, groups = topology.chip, Groups(mesh)
  flops, bytes_ = chip.flops / chip.devices, chip.hbm_rate / chip.devices
  core_of = lambda one: max(one.flops / flops, one.bytes / bytes_)

  def traffic(one: Transfer) -> Traffic | None:
    members = (
      groups.across()
      if one.groups == SLICES
      else groups.members(one.groups, one.kind == 'collective-permute')
    )
    return traffic_of(one, members, topology) if members.count > 1 else None

  def once(one: Transfer) -> tuple[str, float]:
    made = traffic(one._replace(times=1))
    return (f'{made.network} {made.axes}', made.seconds) if made else ('', 0.0)

  found: dict[tuple[str, str, str], Traffic] = {}
  for new in filter(None, map(traffic, cost.transfers)):
    old = found.get(new[:3], Traffic(*new[:3], 0, 0.0, 0.0))
    found[new[:3]] = Traffic(
      *new[:3], old.count + new.count, old.moved + new.moved, old.seconds + new.seconds
    )
  kinds = sorted(found.values(), key=lambda one: -one.seconds)
  networks: dict[str, float] = {}
  for one in kinds:
    name = f'{one.network} {one.axes}'
    networks[name] = networks.get(name, 0.0) + one.seconds
  core = sum(one.times * core_of(one) for one in cost.work)
  return Estimate(
    cost.flops / flops,
    cost.bytes / bytes_,
    core,
    scheduled_seconds(cost.order, core_of, once),
    networks,
    kinds,
  )
