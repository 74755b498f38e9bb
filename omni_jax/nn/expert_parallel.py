"""Expert parallelism: experts split over the mesh axis `expert`, tokens go to them and come back, in one shard_map."""

from collections.abc import Callable
import dataclasses
import enum
from functools import partial
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax import sharding
from omni_jax.nn.experts import Experts, Grouped, moe_experts
from omni_jax.nn.slots import (
  assign_equal,
  assign_sorted,
  combine,
  dispatch,
  dispatch_choices,
  rows,
  Slots,
  sums_before,
)


class Exchange(enum.StrEnum):
  """How tokens come to experts on other devices."""

  GATHER = 'gather'  # every device sees the tokens of all, and the results are summed: nothing is ever dropped
  ALL_TO_ALL = 'all_to_all'  # every choice goes to its own device: less traffic, but the place to receive is bounded


@dataclasses.dataclass(frozen=True)
class Dispatch:
  """How the experts of a layer are computed.

  Attributes:
    exchange: see Exchange; of no effect where the axis `expert` has size 1.
    capacity: choices that a device can receive, in multiples of what it would get if all got the same; 0 for as many
      as there can be, which drops nothing.
    block: slots in a block, see `experts.moe_blocks`.
  """

  exchange: Exchange = Exchange.GATHER
  capacity: float = 2.0
  block: int = 64


class Mixed(NamedTuple):
  """What the experts made of the tokens."""

  y_BLD: Array
  dropped: Array  # share of the choices that found no place


def moe_expert_parallel(
  x_BLD: Array,
  shared_BLD: Array | None,
  weights: Experts,
  expert_BLK: Array,
  weight_BLK: Array,
  *,
  how: Dispatch,
  mesh: Mesh,
) -> Mixed:
  """Routed experts over all devices. Choices outside [0, E) are padding: they go nowhere.

  Args:
    shared_BLD: what an expert made of all tokens, or None; it is added, and is made while tokens are on their way.
    weights: in the type of the computation; split over the mesh axes that the table of rules names.
  """
  compute = partial(moe_experts, grouped=Grouped.of(mesh), block=how.block)
  flat = lambda a: a.reshape(-1, a.shape[-1])
  if mesh.size == 1:
    y_TD = compute(flat(x_BLD), weights, flat(expert_BLK), flat(weight_BLK))
    return Mixed(_sum(y_TD.reshape(x_BLD.shape), shared_BLD), jnp.zeros(()))
  layouts = [
    sharding.fitting(mesh, sharding.spec(*axes), w.shape).spec
    for axes, w in zip(EXPERT_AXES, weights, strict=True)
  ]
  apart = mesh.shape[sharding.EXPERT_AXIS] > 1
  exchange = _all_to_all if how.exchange == Exchange.ALL_TO_ALL and apart else _gather

  def local(x_BLD, shared_BLD, weights, expert_BLK, weight_BLK):
    weights = Experts(
      *(
        sharding.whole_width(w, layout)
        for w, layout in zip(weights, layouts, strict=True)
      )
    )
    y_TD, shared_BLD, dropped = exchange(
      flat(x_BLD),
      shared_BLD,
      weights,
      flat(expert_BLK),
      flat(weight_BLK),
      compute=compute,
      how=how,
      mesh=mesh,
    )
    if layouts[0][2]:  # the hidden width is split: each device has a part of every sum
      y_TD = jax.lax.psum(y_TD, layouts[0][2])
    return Mixed(_sum(y_TD.reshape(x_BLD.shape), shared_BLD), dropped)

  # A reply that is being written has one position, and perhaps one row: then all devices do the same with it.
  tokens = sharding.spec(
    *map(partial(sharding.dividing, mesh), ('batch', 'length'), x_BLD.shape)
  )
  everywhere = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(tokens, tokens, Experts(*layouts), tokens, tokens),
    out_specs=Mixed(tokens, sharding.spec()),
    check_vma=False,
  )
  return everywhere(x_BLD, shared_BLD, weights, expert_BLK, weight_BLK)


def _sum(routed_BLD: Array, shared_BLD: Array | None) -> Array:
  return routed_BLD if shared_BLD is None else routed_BLD + shared_BLD


# Of the weights. Those of `down` are split along the hidden width, too, by the axis that only saves memory: a slice of
# few columns would be padded to a TPU's 128 lanes.
EXPERT_AXES = Experts(
  ('expert', 'expert_embed', 'mlp'),
  ('expert', 'expert_embed', 'mlp'),
  ('expert', 'mlp_rows', None),
)


def _gather(x_TD, shared, weights, expert_TK, weight_TK, *, compute, how, mesh):
  """All tokens of the devices that share the experts, each device with its own experts; then the sum."""
  del how
  if mesh.shape[sharding.EXPERT_AXIS] == 1:
    return compute(x_TD, weights, expert_TK, weight_TK), shared, jnp.zeros(())
  everyone = partial(
    jax.lax.all_gather, axis_name=sharding.EXPERT_AXIS, axis=0, tiled=True
  )
  first = jax.lax.axis_index(sharding.EXPERT_AXIS) * len(weights.up_EDF)
  x_RD, weight_RK, shared = _meanwhile(everyone(x_TD), everyone(weight_TK), shared)
  y_RD = compute(x_RD, weights, everyone(expert_TK) - first, weight_RK)
  return (
    jax.lax.psum_scatter(y_RD, sharding.EXPERT_AXIS, scatter_dimension=0, tiled=True),
    shared,
    jnp.zeros(()),
  )


def _meanwhile(
  arrived_RD: Array, weight_RK: Array, shared: Array | None
) -> tuple[Array, Array, Array | None]:
  """The experts wait for the shared one, too, which does not wait for the transfer: XLA runs it meanwhile."""
  if shared is not None:
    weight_RK, shared = jax.lax.optimization_barrier((weight_RK, shared))
    arrived_RD, weight_RK = jax.lax.optimization_barrier((arrived_RD, weight_RK))
  return arrived_RD, weight_RK, shared


def _all_to_all(x_TD, shared, weights, expert_TK, weight_TK, *, compute, how, mesh):
  """Every choice to the device that has its expert, and back.

  Dropped is what finds no place there: of each sender the choices that come last in the row.
  """
  ways, experts, choices = (
    mesh.shape[sharding.EXPERT_AXIS],
    len(weights.up_EDF),
    expert_TK.size,
  )
  ragged = mesh.devices.flat[0].platform != 'cpu'
  most = (
    ways * len(x_TD) * min(expert_TK.shape[1], experts)
  )  # a token's choices are different experts
  room = (
    min(most, -(-int(choices * how.capacity) // ways) * ways) if how.capacity else most
  )
  route = (_ragged_route if ragged else _equal_route)(expert_TK // experts, ways, room)
  first = jax.lax.axis_index(sharding.EXPERT_AXIS) * experts
  # One more than the expert's number: what nobody sent stays 0, which is of no expert.
  number_Z = rows(expert_TK.reshape(-1) + 1, route.slots.choice_Z).astype(jnp.float32)
  told_Z2 = jnp.stack(
    [number_Z, dispatch_choices(weight_TK.astype(jnp.float32), route.slots)], axis=1
  )
  # First the numbers: behind the tokens they would wait for the network, and the core for them.
  x_ZD, told_R2 = jax.lax.optimization_barrier(
    (dispatch(x_TD, route.slots), route.tell(told_Z2))
  )
  expert_R1 = told_R2[:, :1].astype(jnp.int32) - 1 - first
  x_RD, weight_R1, shared = _meanwhile(
    route.send(x_ZD), told_R2[:, 1:].astype(x_TD.dtype), shared
  )
  y_TD = combine(route.back(compute(x_RD, weights, expert_R1, weight_R1)), route.slots)
  counts = jax.lax.psum(
    jnp.stack([route.dropped, (expert_TK < ways * experts).sum()]), sharding.TOKEN_AXES
  )
  return y_TD, shared, counts[0] / jnp.maximum(counts[1], 1)


class _Route(NamedTuple):
  """Slots for what leaves this device, sorted by where it goes; `send` brings them to R places, `back` returns them.

  `tell` is `send` for a few numbers of every slot.
  """

  slots: Slots
  tell: Callable[[Array], Array]
  send: Callable[[Array], Array]
  back: Callable[[Array], Array]
  dropped: Array  # choices of this device


def _equal_route(device_TK: Array, ways: int, room: int) -> _Route:
  """Equally many places for every pair of devices, whatever is sent."""
  slots = assign_equal(device_TK, ways, room // ways)
  swap = partial(
    jax.lax.all_to_all,
    axis_name=sharding.EXPERT_AXIS,
    split_axis=0,
    concat_axis=0,
    tiled=True,
  )
  lost = (device_TK < ways) & (slots.slot_TK == len(slots.choice_Z))
  return _Route(slots, swap, swap, swap, lost.sum())


def _ragged_route(device_TK: Array, ways: int, room: int) -> _Route:
  """Only what there is, packed: the room is shared by all senders, in their order."""
  slots, sent_N = assign_sorted(device_TK, ways)
  me = jax.lax.axis_index(sharding.EXPERT_AXIS)
  sent_MN = jax.lax.all_gather(sent_N, sharding.EXPERT_AXIS)  # from M to N
  start_MN = sums_before(sent_MN.T).T  # of what goes to N among the slots of M
  place_MN = sums_before(sent_MN)  # of what comes from M in the room of N
  fits_MN = jnp.clip(room - place_MN, 0, sent_MN)

  def tell(
    told_Zn,
  ):  # everything to all: a TPU would send each row of few numbers as 128 of them
    told_nR, place_R = (
      jnp.zeros((told_Zn.shape[1], room), told_Zn.dtype),
      jnp.arange(room),
    )
    for m, told_nZ in enumerate(jax.lax.all_gather(told_Zn.T, sharding.EXPERT_AXIS)):
      begin, size = place_MN[m, me], fits_MN[m, me]
      padded_nP = jnp.pad(told_nZ, ((0, 0), (room, room)))
      moved_nR = jax.lax.dynamic_slice_in_dim(
        padded_nP, room + start_MN[m, me] - begin, room, axis=1
      )
      told_nR = jnp.where(
        (place_R >= begin) & (place_R < begin + size), moved_nR, told_nR
      )
    return told_nR.T

  def send(x_Z):
    room_R = jnp.zeros((room, *x_Z.shape[1:]), x_Z.dtype)
    return jax.lax.ragged_all_to_all(
      x_Z,
      room_R,
      start_MN[me],
      fits_MN[me],
      place_MN[me],
      fits_MN[:, me],
      axis_name=sharding.EXPERT_AXIS,
    )

  def back(y_R):
    room_Z = jnp.zeros((len(slots.choice_Z), *y_R.shape[1:]), y_R.dtype)
    return jax.lax.ragged_all_to_all(
      y_R,
      room_Z,
      place_MN[:, me],
      fits_MN[:, me],
      start_MN[:, me],
      fits_MN[me],
      axis_name=sharding.EXPERT_AXIS,
    )

  return _Route(slots, tell, send, back, (sent_MN - fits_MN)[me].sum())
