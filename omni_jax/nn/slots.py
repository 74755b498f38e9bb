"""Slots: where the choices of the router lie while they are with their experts; there and back without a scatter."""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int


class Slots(NamedTuple):
  """Where the C = T·K choices lie among Z slots. Slots of one group (an expert, a device) lie side by side."""

  choice_Z: Array  # choice in each slot, or C where the slot is empty
  slot_TK: Array  # slot of each choice, or Z where it has none


class Blocks(NamedTuple):
  """Slots of which every `block` in a row belong to one expert."""

  slots: Slots
  expert_N: Array  # owner of each block


def assign_blocks(expert_TK: Int[Array, 'T K'], experts: int, block: int) -> Blocks:
  """Groups choices by expert and rounds every expert up to whole blocks: static shapes, nothing dropped.

  Choices of experts outside [0, experts) get no slot.
  """
  blocks = -(-expert_TK.size // block) + experts
  chosen_CE = jax.nn.one_hot(expert_TK.reshape(-1), experts, dtype=jnp.int32)
  blocks_E = -(-chosen_CE.sum(axis=0) // block)
  first_E = sums_before(blocks_E[:, None])[:, 0]
  slot_C = jnp.where(
    chosen_CE.any(axis=1),
    chosen_CE @ first_E * block + _rank(chosen_CE),
    blocks * block,
  )
  expert_N = jnp.sum(jnp.arange(blocks)[:, None] >= first_E[None], axis=1) - 1
  return Blocks(
    _inverse(slot_C.reshape(expert_TK.shape), blocks * block),
    jnp.clip(expert_N, 0, experts - 1),
  )


def assign_equal(group_TK: Int[Array, 'T K'], groups: int, size: int) -> Slots:
  """`size` slots for every group; what a group has no slot for is dropped, as are choices outside [0, groups)."""
  chosen_CG = jax.nn.one_hot(group_TK.reshape(-1), groups, dtype=jnp.int32)
  rank_C = _rank(chosen_CG)
  has_C = chosen_CG.any(axis=1) & (rank_C < size)
  slot_C = jnp.where(has_C, group_TK.reshape(-1) * size + rank_C, groups * size)
  return _inverse(slot_C.reshape(group_TK.shape), groups * size)


def assign_sorted(
  group_TK: Int[Array, 'T K'], groups: int
) -> tuple[Slots, Int[Array, 'G']]:
  """As many slots as choices, sorted by group without gaps, and the size of every group.

  Choices outside [0, groups) get no slot; the slots behind the last group are empty.
  """
  group_C = group_TK.reshape(-1)
  choices = len(group_C)
  assert choices * (groups + 1) < 2**31, (choices, groups)
  chosen_CG = jax.nn.one_hot(group_C, groups, dtype=jnp.int32)
  size_G = chosen_CG.sum(axis=0)
  first_G = sums_before(size_G[:, None])[:, 0]
  here_C = chosen_CG.any(axis=1)
  slot_C = jnp.where(here_C, chosen_CG @ first_G + _rank(chosen_CG), choices)
  # The inverse by one sort of numbers (group, choice): two stable argsorts take XLA 12 s to compile for a TPU.
  key_C = jnp.where(here_C, group_C, groups) * choices + jnp.arange(
    choices, dtype=jnp.int32
  )
  order_Z = jnp.sort(key_C, stable=False) % choices
  choice_Z = jnp.where(jnp.arange(choices) < size_G.sum(), order_Z, choices)
  return Slots(
    choice_Z.astype(jnp.int32), slot_C.reshape(group_TK.shape).astype(jnp.int32)
  ), size_G


def sums_before(count_NG: Int[Array, 'N G']) -> Int[Array, 'N G']:
  """Exclusive sums along the first axis, all with all: XLA compiles a cumsum for a TPU slowly."""
  before_NN1 = jnp.tri(len(count_NG), k=-1, dtype=bool)[..., None]
  return jnp.where(before_NN1, count_NG[None], 0).sum(axis=1)


def _rank(chosen_CG: Array) -> Array:
  """Place of every choice among those of its group: counted inside chunks by a matmul, between them by their sums."""
  chunk = min(512, len(chosen_CG))
  padded_CG = jnp.pad(chosen_CG, ((0, -len(chosen_CG) % chunk), (0, 0)))
  chosen_NcG = padded_CG.reshape(-1, chunk, padded_CG.shape[1])
  before_cc = jnp.tri(chunk, k=-1, dtype=jnp.float32)
  rank_NcG = jnp.einsum(
    'ij,njg->nig', before_cc, chosen_NcG.astype(jnp.float32)
  ).astype(jnp.int32)  # exact below 2^24
  rank_NcG = rank_NcG + sums_before(chosen_NcG.sum(axis=1))[:, None]
  return (rank_NcG * chosen_NcG).sum(axis=2).reshape(-1)[: len(chosen_CG)]


def _inverse(slot_TK: Array, slots: int) -> Slots:
  choices = slot_TK.size
  choice_Z = (
    jnp.full(slots, choices, jnp.int32)
    .at[slot_TK.reshape(-1)]
    .set(jnp.arange(choices, dtype=jnp.int32), mode='drop')
  )
  return Slots(choice_Z, slot_TK.astype(jnp.int32))


def rows(x: Array, index: Array) -> Array:
  """x[index], zeros where the index is one past the end."""
  found = index < len(x)
  picked = x.at[jnp.where(found, index, 0)].get(mode='promise_in_bounds')
  return jnp.where(
    found.reshape(found.shape + (1,) * (x.ndim - 1)), picked, jnp.zeros((), x.dtype)
  )


# There and back are inverse gathers, each the gradient of the other: no direction needs a scatter, which is slow
# everywhere, and nothing but the slots is kept for the gradient.
@jax.custom_vjp
def dispatch(x_TD: Float[Array, 'T D'], slots: Slots) -> Float[Array, 'Z D']:
  """Tokens into their slots; empty slots are zero."""
  return rows(x_TD, slots.choice_Z // slots.slot_TK.shape[1])


@jax.custom_vjp
def combine(y_ZD: Float[Array, 'Z D'], slots: Slots) -> Float[Array, 'T D']:
  """Sum of each token's slots, in fp32; a choice without a slot counts as zero."""
  return rows(y_ZD, slots.slot_TK).sum(axis=1, dtype=jnp.float32).astype(y_ZD.dtype)


@jax.custom_vjp
def dispatch_choices(weight_TK: Float[Array, 'T K'], slots: Slots) -> Float[Array, 'Z']:
  """A number of every choice into its slot; empty slots are zero."""
  return rows(weight_TK.reshape(-1), slots.choice_Z)


dispatch.defvjp(
  lambda x_TD, slots: (dispatch(x_TD, slots), slots),
  lambda slots, dy_ZD: (combine(dy_ZD, slots), None),
)
combine.defvjp(
  lambda y_ZD, slots: (combine(y_ZD, slots), slots),
  lambda slots, dx_TD: (dispatch(dx_TD, slots), None),
)
dispatch_choices.defvjp(
  lambda weight_TK, slots: (dispatch_choices(weight_TK, slots), slots),
  lambda slots, dweight_Z: (rows(dweight_Z, slots.slot_TK), None),
)
