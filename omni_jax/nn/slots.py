"""Slots: the places of the router's choices while their experts compute.

Tokens are moved into their slots and back without a scatter.
"""

from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int

CHUNK = 512  # choices that one matmul of `_rank` counts


class Slots(NamedTuple):
  """The places of C = T·K choices among Z slots.

  Slots of one group (an expert or a device) are adjacent.

  Attributes:
    choice_Z: choice in each slot, or C if the slot is empty.
    slot_TK: slot of each choice, or Z if it has none.
  """

  choice_Z: Array
  slot_TK: Array


class Blocks(NamedTuple):
  """Slots in blocks, each of which belongs to one expert.

  Attributes:
    slots: places of the choices.
    expert_N: expert of each block.
    used: number of blocks that hold choices; they are the first ones.
  """

  slots: Slots
  expert_N: Array
  used: Array


def assign_blocks(expert_TK: Int[Array, 'T K'], experts: int, block: int) -> Blocks:
  """Returns slots grouped by expert, in whole blocks for each expert.

  Shapes are static and nothing is dropped. Choices of experts outside [0, experts) get
  no slot.
  """
  blocks = -(-expert_TK.size // block) + experts
  chosen_CE = jax.nn.one_hot(expert_TK.reshape(-1), experts, dtype=jnp.int32)
  blocks_E = -(-chosen_CE.sum(axis=0) // block)
  first_E = sums_before(blocks_E[:, None])[:, 0]
  routed_C = chosen_CE.any(axis=1)
  own_slot_C = chosen_CE @ first_E * block + _rank(chosen_CE)
  slot_C = jnp.where(routed_C, own_slot_C, blocks * block)
  expert_N = jnp.sum(jnp.arange(blocks)[:, None] >= first_E[None], axis=1) - 1
  slots = _inverse(slot_C.reshape(expert_TK.shape), blocks * block)
  return Blocks(slots, jnp.clip(expert_N, 0, experts - 1), blocks_E.sum())


def assign_equal(group_TK: Int[Array, 'T K'], groups: int, size: int) -> Slots:
  """Returns slots in groups of `size`.

  Choices beyond the slots of their group are dropped, as are those outside [0, groups).
  """
  chosen_CG = jax.nn.one_hot(group_TK.reshape(-1), groups, dtype=jnp.int32)
  rank_C = _rank(chosen_CG)
  has_slot_C = chosen_CG.any(axis=1) & (rank_C < size)
  slot_C = jnp.where(has_slot_C, group_TK.reshape(-1) * size + rank_C, groups * size)
  return _inverse(slot_C.reshape(group_TK.shape), groups * size)


def assign_sorted(
  group_TK: Int[Array, 'T K'], groups: int
) -> tuple[Slots, Int[Array, 'G']]:
  """Returns as many slots as choices, sorted by group, and the size of every group.

  There are no gaps between groups. Choices outside [0, groups) get no slot; the slots
  after the last group are empty.
  """
  group_C = group_TK.reshape(-1)
  choices = len(group_C)
  assert choices * (groups + 1) < 2**31, (choices, groups)
  chosen_CG = jax.nn.one_hot(group_C, groups, dtype=jnp.int32)
  size_G = chosen_CG.sum(axis=0)
  first_G = sums_before(size_G[:, None])[:, 0]
  routed_C = chosen_CG.any(axis=1)
  slot_C = jnp.where(routed_C, chosen_CG @ first_G + _rank(chosen_CG), choices)
  # The inverse is one sort of the numbers (group, choice): XLA takes 12 s to compile
  # two stable argsorts for a TPU.
  first_key_C = jnp.where(routed_C, group_C, groups) * choices
  key_C = first_key_C + jnp.arange(choices, dtype=jnp.int32)
  order_Z = jnp.sort(key_C, stable=False) % choices
  choice_Z = jnp.where(jnp.arange(choices) < size_G.sum(), order_Z, choices)
  choice_Z = choice_Z.astype(jnp.int32)
  slot_TK = slot_C.reshape(group_TK.shape).astype(jnp.int32)
  return Slots(choice_Z, slot_TK), size_G


def sums_before(count_NG: Int[Array, 'N G']) -> Int[Array, 'N G']:
  """Returns the exclusive sums along the first axis.

  Each sum is computed separately, since XLA is slow to compile a cumsum for a TPU.
  """
  before_NN1 = jnp.tri(len(count_NG), k=-1, dtype=bool)[..., None]
  return jnp.where(before_NN1, count_NG[None], 0).sum(axis=1)


def _rank(chosen_CG: Array) -> Array:
  """Returns the place of every choice among those of its group.

  A matmul counts inside U chunks of c choices; the sums of the chunks before are added.
  """
  chunk = min(CHUNK, len(chosen_CG))
  padded_CG = jnp.pad(chosen_CG, ((0, -len(chosen_CG) % chunk), (0, 0)))
  chosen_UcG = padded_CG.reshape(-1, chunk, padded_CG.shape[1])
  before_cc = jnp.tri(chunk, k=-1, dtype=jnp.float32)
  # The sums in fp32 are exact below 2^24.
  rank_UcG = jnp.einsum('ij,njg->nig', before_cc, chosen_UcG.astype(jnp.float32))
  rank_UcG = rank_UcG.astype(jnp.int32)
  rank_UcG = rank_UcG + sums_before(chosen_UcG.sum(axis=1))[:, None]
  return (rank_UcG * chosen_UcG).sum(axis=2).reshape(-1)[: len(chosen_CG)]


def _inverse(slot_TK: Array, slots: int) -> Slots:
  """Returns the slots of choices together with the choice in each slot."""
  choices = slot_TK.size
  empty_Z = jnp.full(slots, choices, jnp.int32)
  choice_C = jnp.arange(choices, dtype=jnp.int32)
  choice_Z = empty_Z.at[slot_TK.reshape(-1)].set(choice_C, mode='drop')
  return Slots(choice_Z, slot_TK.astype(jnp.int32))


def take_rows(x: Array, index: Array) -> Array:
  """Returns x[index], with zeros where the index is one past the end."""
  inside = index < len(x)
  picked = x.at[jnp.where(inside, index, 0)].get(mode='promise_in_bounds')
  inside = inside.reshape(inside.shape + (1,) * (x.ndim - 1))
  return jnp.where(inside, picked, jnp.zeros((), x.dtype))


# `dispatch` and `combine` are inverse gathers, and each is the gradient of the other:
# neither needs a scatter, which is slow everywhere, and only the slots are kept for the
# gradient.
@jax.custom_vjp
def dispatch(x_TD: Float[Array, 'T D'], slots: Slots) -> Float[Array, 'Z D']:
  """Returns the token in each slot; empty slots are zero."""
  return take_rows(x_TD, slots.choice_Z // slots.slot_TK.shape[1])


@jax.custom_vjp
def combine(y_ZD: Float[Array, 'Z D'], slots: Slots) -> Float[Array, 'T D']:
  """Returns the sum of each token's slots, computed in fp32.

  A choice without a slot counts as zero.
  """
  y_TKD = take_rows(y_ZD, slots.slot_TK)
  return y_TKD.sum(axis=1, dtype=jnp.float32).astype(y_ZD.dtype)


@jax.custom_vjp
def dispatch_choices(weight_TK: Float[Array, 'T K'], slots: Slots) -> Float[Array, 'Z']:
  """Returns the weight of the choice in each slot; empty slots are zero."""
  return take_rows(weight_TK.reshape(-1), slots.choice_Z)


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
  lambda slots, dweight_Z: (take_rows(dweight_Z, slots.slot_TK), None),
)
