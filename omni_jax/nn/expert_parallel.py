"""Expert parallelism: experts are split over the mesh axis `expert`.

Tokens travel to their experts and back inside one shard_map.
"""

from collections.abc import Callable
import dataclasses
import enum
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh

from omni_jax import sharding
from omni_jax.nn.experts import Experts, GroupedMatmul, moe_experts
from omni_jax.nn.slots import (
  assign_equal,
  assign_sorted,
  combine,
  dispatch,
  dispatch_choices,
  Slots,
  sums_before,
  take_rows,
)


class Exchange(enum.StrEnum):
  """Ways for tokens to reach experts on other devices."""

  # Every device sees the tokens of all, and the results are summed: nothing is dropped.
  GATHER = 'gather'
  # Every choice goes to its device: less traffic, but each can receive only so many.
  ALL_TO_ALL = 'all_to_all'


@dataclasses.dataclass(frozen=True)
class Dispatch:
  """Settings for computing the experts of a layer.

  Attributes:
    exchange: see Exchange; no effect if the axis `expert` has size 1.
    capacity: number of choices that a device can receive, as a multiple of its equal
      share; 0 for the largest possible number, so that nothing is dropped.
    block: slots in a block, see `experts.moe_blocks`.
  """

  exchange: Exchange
  capacity: float
  block: int


class ExpertOutput(NamedTuple):
  """The output of the experts.

  Attributes:
    y_BLD: sum of the chosen experts, and of the shared one if there is one.
    dropped: share of the choices that found no place, a scalar.
  """

  y_BLD: Array
  dropped: Array


# Logical axes of the weights. Those of `down` are split along the hidden width by the
# axis that only saves memory as well: a slice of few columns would be padded to the 128
# lanes of a TPU.
UP_AXES = ('expert', 'expert_embed', 'mlp')
DOWN_AXES = ('expert', 'mlp_rows', None)


def moe_expert_parallel(
  x_BLD: Array,
  shared_BLD: Array | None,
  weights: Experts,
  expert_BLK: Array,
  weight_BLK: Array,
  *,
  config: Dispatch,
  mesh: Mesh,
) -> ExpertOutput:
  """Returns the sum of the routed experts, computed by all devices.

  Choices outside [0, E) are padding: they go nowhere.

  Args:
    shared_BLD: output of the shared expert, or None. It is added, and is computed while
      tokens are in transit.
    weights: in the type of the computation; split over the mesh axes of the table of
      rules.
  """
  compute = partial(moe_experts, matmul=GroupedMatmul.of(mesh), block=config.block)
  if mesh.size == 1:
    y_TD = compute(_flat(x_BLD), weights, _flat(expert_BLK), _flat(weight_BLK))
    return ExpertOutput(_sum(y_TD.reshape(x_BLD.shape), shared_BLD), jnp.zeros(()))
  pspecs = []
  for axes, w in zip((UP_AXES, UP_AXES, DOWN_AXES), weights, strict=True):
    split = sharding.weight_sharding(mesh, sharding.spec(*axes), w.shape)
    pspecs.append(split.spec)
  hidden_axes = pspecs[0][2]
  exchange = _gather
  if config.exchange == Exchange.ALL_TO_ALL and mesh.shape[sharding.EXPERT_AXIS] > 1:
    exchange = _all_to_all

  def local(x_BLD, shared_BLD, weights, expert_BLK, weight_BLK):
    pairs = zip(weights, pspecs, strict=True)
    weights = Experts(*(sharding.gather_weight(w, pspec) for w, pspec in pairs))
    y_TD, shared_BLD, dropped = exchange(
      _flat(x_BLD),
      shared_BLD,
      weights,
      _flat(expert_BLK),
      _flat(weight_BLK),
      compute=compute,
      config=config,
      mesh=mesh,
    )
    if hidden_axes:  # each device has computed a part of every sum
      y_TD = jax.lax.psum(y_TD, hidden_axes)
    return ExpertOutput(_sum(y_TD.reshape(x_BLD.shape), shared_BLD), dropped)

  # A reply that is being generated has one position, and possibly one row: then the
  # mesh does not divide them, and all devices do the same work.
  rows_axis = sharding.axis_if_divisible(mesh, 'batch', x_BLD.shape[0])
  length_axis = sharding.axis_if_divisible(mesh, 'length', x_BLD.shape[1])
  tokens = sharding.spec(rows_axis, length_axis)
  weight_specs: Any = Experts._make(pspecs)
  out_specs: Any = ExpertOutput._make([tokens, sharding.spec()])
  on_all_devices = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(tokens, tokens, weight_specs, tokens, tokens),
    out_specs=out_specs,
    check_vma=False,
  )
  return on_all_devices(x_BLD, shared_BLD, weights, expert_BLK, weight_BLK)


def _flat(x_BLD: Array) -> Array:
  """Returns the tokens of all rows on one axis."""
  return x_BLD.reshape(-1, x_BLD.shape[-1])


def _sum(routed_BLD: Array, shared_BLD: Array | None) -> Array:
  return routed_BLD if shared_BLD is None else routed_BLD + shared_BLD


class _ExchangeResult(NamedTuple):
  """The result of an exchange, on the device of the tokens.

  Attributes:
    y_TD: sum of the chosen experts.
    shared_BLD: output of the shared expert, or None.
    dropped: share of the choices that found no place.
  """

  y_TD: Array
  shared_BLD: Array | None
  dropped: Array


def _gather(
  x_TD: Array,
  shared: Array | None,
  weights: Experts,
  expert_TK: Array,
  weight_TK: Array,
  *,
  compute: Callable[..., Array],
  config: Dispatch,
  mesh: Mesh,
) -> _ExchangeResult:
  """Gathers the tokens of the devices that share the experts, and sums the results.

  Each device computes its own experts on all of these tokens.
  """
  del config
  if mesh.shape[sharding.EXPERT_AXIS] == 1:
    y_TD = compute(x_TD, weights, expert_TK, weight_TK)
    return _ExchangeResult(y_TD, shared, jnp.zeros(()))
  gather = partial(
    jax.lax.all_gather, axis_name=sharding.EXPERT_AXIS, axis=0, tiled=True
  )
  first = jax.lax.axis_index(sharding.EXPERT_AXIS) * len(weights.up_EDF)
  x_RD, weight_RK, shared = _overlapped(gather(x_TD), gather(weight_TK), shared)
  y_RD = compute(x_RD, weights, gather(expert_TK) - first, weight_RK)
  y_TD = jax.lax.psum_scatter(
    y_RD, sharding.EXPERT_AXIS, scatter_dimension=0, tiled=True
  )
  return _ExchangeResult(y_TD, shared, jnp.zeros(()))


def _overlapped(
  arrived_RD: Array, weight_RK: Array, shared: Array | None
) -> tuple[Array, Array, Array | None]:
  """Makes the routed experts wait for the shared expert as well as for the transfer.

  The shared expert does not wait for the transfer, so XLA runs it in the meantime.
  """
  if shared is not None:
    weight_RK, shared = jax.lax.optimization_barrier((weight_RK, shared))
    arrived_RD, weight_RK = jax.lax.optimization_barrier((arrived_RD, weight_RK))
  return arrived_RD, weight_RK, shared


def _all_to_all(
  x_TD: Array,
  shared: Array | None,
  weights: Experts,
  expert_TK: Array,
  weight_TK: Array,
  *,
  compute: Callable[..., Array],
  config: Dispatch,
  mesh: Mesh,
) -> _ExchangeResult:
  """Sends every choice to the device that has its expert, and the results back.

  Choices that find no place there are dropped, a sender's last ones first.
  """
  ways = mesh.shape[sharding.EXPERT_AXIS]
  experts = len(weights.up_EDF)
  room = _room(x_TD, expert_TK, ways, experts, config.capacity)
  route_of = _equal_route if mesh.devices.flat[0].platform == 'cpu' else _ragged_route
  route = route_of(expert_TK // experts, ways, room)
  first = jax.lax.axis_index(sharding.EXPERT_AXIS) * experts
  # One more than the expert's number: places that nothing was sent to stay 0, which is
  # no expert.
  number_Z = take_rows(expert_TK.reshape(-1) + 1, route.slots.choice_Z).astype(
    jnp.float32
  )
  weight_Z = dispatch_choices(weight_TK.astype(jnp.float32), route.slots)
  numbers_Z2 = jnp.stack([number_Z, weight_Z], axis=1)
  # The numbers go first: after the tokens they would wait for the network, and the
  # core would wait for them.
  x_ZD, numbers_R2 = jax.lax.optimization_barrier(
    (dispatch(x_TD, route.slots), route.send_numbers(numbers_Z2))
  )
  expert_R1 = numbers_R2[:, :1].astype(jnp.int32) - 1 - first
  x_RD, weight_R1, shared = _overlapped(
    route.send(x_ZD), numbers_R2[:, 1:].astype(x_TD.dtype), shared
  )
  y_ZD = route.send_back(compute(x_RD, weights, expert_R1, weight_R1))
  y_TD = combine(y_ZD, route.slots)
  routed = (expert_TK < ways * experts).sum()
  counts = jnp.stack([route.dropped, routed])
  dropped, routed = jax.lax.psum(counts, sharding.token_axes(mesh))
  return _ExchangeResult(y_TD, shared, dropped / jnp.maximum(routed, 1))


def _room(
  x_TD: Array, expert_TK: Array, ways: int, experts: int, capacity: float
) -> int:
  """Returns the number of choices that a device can receive.

  Args:
    ways: number of devices that share the experts.
    experts: number of experts on each of them.
  """
  # The choices of a token are different experts.
  largest = ways * len(x_TD) * min(expert_TK.shape[1], experts)
  if not capacity:
    return largest
  per_sender = -(-int(expert_TK.size * capacity) // ways)
  return min(largest, per_sender * ways)


class _Route(NamedTuple):
  """The way of choices to the devices of their experts and back.

  Attributes:
    slots: places of what leaves this device, sorted by where it goes.
    send_numbers: the same as `send`, for a few numbers per slot.
    send: brings the slots of all devices to R places on the devices of their experts.
    send_back: brings what is in the places back to the slots.
    dropped: number of choices of this device that find no place.
  """

  slots: Slots
  send_numbers: Callable[[Array], Array]
  send: Callable[[Array], Array]
  send_back: Callable[[Array], Array]
  dropped: Array


def _equal_route(device_TK: Array, ways: int, room: int) -> _Route:
  """Returns a route with the same number of places for every pair of devices."""
  slots = assign_equal(device_TK, ways, room // ways)
  swap = partial(
    jax.lax.all_to_all,
    axis_name=sharding.EXPERT_AXIS,
    split_axis=0,
    concat_axis=0,
    tiled=True,
  )
  dropped_TK = (device_TK < ways) & (slots.slot_TK == len(slots.choice_Z))
  return _Route(slots, swap, swap, swap, dropped_TK.sum())


def _ragged_route(device_TK: Array, ways: int, room: int) -> _Route:
  """Returns a route that sends only what there is, without gaps.

  All senders share the room of a receiver, in their order.
  """
  slots, sent_N = assign_sorted(device_TK, ways)
  me = jax.lax.axis_index(sharding.EXPERT_AXIS)
  # What each sender X sends to each receiver N: the number of choices, their start
  # among the slots of X, and their start in the room of N.
  sent_XN = jax.lax.all_gather(sent_N, sharding.EXPERT_AXIS)
  start_XN = sums_before(sent_XN.T).T
  place_XN = sums_before(sent_XN)
  fits_XN = jnp.clip(room - place_XN, 0, sent_XN)

  def send_numbers(numbers_Zn):
    # All numbers go to all devices: a TPU would send each row of few numbers as 128.
    numbers_nR = jnp.zeros((numbers_Zn.shape[1], room), numbers_Zn.dtype)
    place_R = jnp.arange(room)
    numbers_XnZ = jax.lax.all_gather(numbers_Zn.T, sharding.EXPERT_AXIS)
    for sender, numbers_nZ in enumerate(numbers_XnZ):
      begin = place_XN[sender, me]
      size = fits_XN[sender, me]
      padded = jnp.pad(numbers_nZ, ((0, 0), (room, room)))
      moved_nR = jax.lax.dynamic_slice_in_dim(
        padded, room + start_XN[sender, me] - begin, room, axis=1
      )
      from_sender_R = (place_R >= begin) & (place_R < begin + size)
      numbers_nR = jnp.where(from_sender_R, moved_nR, numbers_nR)
    return numbers_nR.T

  def send(x_Z):
    room_R = jnp.zeros((room, *x_Z.shape[1:]), x_Z.dtype)
    return jax.lax.ragged_all_to_all(
      x_Z,
      room_R,
      start_XN[me],
      fits_XN[me],
      place_XN[me],
      fits_XN[:, me],
      axis_name=sharding.EXPERT_AXIS,
    )

  def send_back(y_R):
    room_Z = jnp.zeros((len(slots.choice_Z), *y_R.shape[1:]), y_R.dtype)
    return jax.lax.ragged_all_to_all(
      y_R,
      room_Z,
      place_XN[:, me],
      fits_XN[:, me],
      start_XN[:, me],
      fits_XN[me],
      axis_name=sharding.EXPERT_AXIS,
    )

  dropped = (sent_XN - fits_XN)[me].sum()
  return _Route(slots, send_numbers, send, send_back, dropped)
