"""Mixture of SwiGLU experts: the dense reference, dropless padded blocks, and expert parallelism over the mesh."""

from functools import partial
from typing import NamedTuple

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.nn import moe_router
from omni_jax.nn.layers import lecun, Linear, SwiGLU

stacked_lecun = nnx.initializers.variance_scaling(1.0, 'fan_in', 'truncated_normal', in_axis=-2, out_axis=-1,
                                                  batch_axis=0)


def _swiglu(x: Array, up: Array, down: Array) -> Array:
  gate, value = jnp.split(x @ up, 2, axis=-1)
  return (jax.nn.silu(gate) * value) @ down


def moe_reference(x_TD: Float[Array, 'T D'], up_EDF: Float[Array, 'E D F2'], down_EFD: Float[Array, 'E F D'],
                  expert_TK: Int[Array, 'T K'], weight_TK: Float[Array, 'T K']) -> Float[Array, 'T D']:
  """Every expert on every token, then the weighted choice: what the fast paths must equal."""
  y_ETD = jax.vmap(_swiglu, in_axes=(None, 0, 0))(x_TD, up_EDF, down_EFD)
  chosen_TKE = jax.nn.one_hot(expert_TK, len(up_EDF), dtype=x_TD.dtype)
  gate_TE = jnp.einsum('tke,tk->te', chosen_TKE, weight_TK.astype(x_TD.dtype))
  return jnp.einsum('etd,te->td', y_ETD, gate_TE)


class Slots(NamedTuple):
  """Where the T·K choices lie among the slots of blocks, each block owned by one expert."""
  token_Z: Array  # token in each slot, or T where the slot is empty
  slot_TK: Array  # slot of each choice, or Z where the choice is of no expert here
  expert_N: Array  # owner of each block


def assign_slots(expert_TK: Int[Array, 'T K'], experts: int, block: int) -> Slots:
  """Sorts choices by expert and rounds every expert up to whole blocks: static shapes, nothing dropped.

  Choices of experts outside [0, experts) get no slot.
  """
  t, k = expert_TK.shape
  blocks = -(-t * k // block) + experts
  size = blocks * block
  chosen_CE = jax.nn.one_hot(expert_TK.reshape(-1), experts, dtype=jnp.int32)
  rank_C = jnp.sum((jnp.cumsum(chosen_CE, axis=0) - 1) * chosen_CE, axis=1)
  blocks_E = -(-chosen_CE.sum(axis=0) // block)
  first_E = jnp.cumsum(blocks_E) - blocks_E
  here_C = chosen_CE.any(axis=1)
  slot_C = jnp.where(here_C, chosen_CE @ first_E * block + rank_C, size)
  token_C = jnp.arange(t * k, dtype=jnp.int32) // k
  token_Z = jnp.full(size, t, jnp.int32).at[slot_C].set(token_C, mode='drop')
  expert_N = jnp.sum(jnp.arange(blocks)[:, None] >= first_E[None], axis=1) - 1
  return Slots(token_Z, slot_C.reshape(t, k).astype(jnp.int32), jnp.clip(expert_N, 0, experts - 1))


def _rows(x: Array, index: Array) -> Array:
  """x[index], zeros where the index is one past the end."""
  return jnp.concatenate([x, jnp.zeros_like(x[:1])])[index]


# Dispatch and combine are inverse gathers, so that neither direction nor gradient needs a scatter (slow everywhere).
@jax.custom_vjp
def dispatch(x_TD: Array, slots: Slots) -> Array:
  """Tokens into their slots; empty slots are zero."""
  return _rows(x_TD, slots.token_Z)


def _dispatch_fwd(x_TD, slots):
  return dispatch(x_TD, slots), slots


def _dispatch_bwd(slots, dy_ZD):
  return _rows(dy_ZD, slots.slot_TK).sum(axis=1), None


dispatch.defvjp(_dispatch_fwd, _dispatch_bwd)


@jax.custom_vjp
def combine(y_ZD: Array, weight_TK: Array, slots: Slots) -> Array:
  """Weighted sum of each token's slots."""
  return jnp.einsum('tkd,tk->td', _rows(y_ZD, slots.slot_TK), weight_TK)


def _combine_fwd(y_ZD, weight_TK, slots):
  y_TKD = _rows(y_ZD, slots.slot_TK)
  return jnp.einsum('tkd,tk->td', y_TKD, weight_TK), (y_TKD, weight_TK, slots)


def _combine_bwd(saved, dout_TD):
  y_TKD, weight_TK, slots = saved
  k = weight_TK.shape[1]
  # Each slot holds one choice of one token: find its weight by matching the slot's number.
  mine_ZK = _rows(slots.slot_TK, slots.token_Z) == jnp.arange(len(slots.token_Z))[:, None]
  weight_Z = jnp.where(mine_ZK, _rows(weight_TK, slots.token_Z), 0).sum(axis=1)
  assert k == mine_ZK.shape[1]
  return _rows(dout_TD, slots.token_Z) * weight_Z[:, None], jnp.einsum('tkd,td->tk', y_TKD, dout_TD), None


combine.defvjp(_combine_fwd, _combine_bwd)


def moe_blocks(x_TD: Float[Array, 'T D'], up_EDF: Float[Array, 'E D F2'], down_EFD: Float[Array, 'E F D'],
               expert_TK: Int[Array, 'T K'], weight_TK: Float[Array, 'T K'], *, block: int) -> Float[Array, 'T D']:
  """Dropless experts as one batched matmul over blocks of `block` slots, each with its expert's weights."""
  slots = assign_slots(expert_TK, len(up_EDF), block)
  x_NbD = dispatch(x_TD, slots).reshape(-1, block, x_TD.shape[1])
  y_NbD = _swiglu(x_NbD, up_EDF[slots.expert_N], down_EFD[slots.expert_N])
  return combine(y_NbD.reshape(-1, x_TD.shape[1]), weight_TK.astype(x_TD.dtype), slots)


def moe_expert_parallel(x_BLD: Array, up_EDF: Array, down_EFD: Array, expert_BLK: Array, weight_BLK: Array, *,
                        block: int, mesh: Mesh) -> Array:
  """Experts split over the mesh axis `expert`; tokens go to all of them and come back summed.

  Gather and reduce-scatter move more than an all-to-all would, but need no receive buffer of unknown size: nothing is
  ever dropped, on any platform.
  """
  if mesh.size == 1:
    flat = lambda a: a.reshape(-1, a.shape[-1])
    y = moe_blocks(flat(x_BLD), up_EDF, down_EFD, flat(expert_BLK), flat(weight_BLK), block=block)
    return y.reshape(x_BLD.shape)
  axis = sharding.EXPERT_AXIS

  def local(x_BLD, up_EDF, down_EFD, expert_BLK, weight_BLK):
    everyone = partial(jax.lax.all_gather, axis_name=axis, axis=0, tiled=True)
    x, expert, weight = everyone(x_BLD), everyone(expert_BLK), everyone(weight_BLK)
    first = jax.lax.axis_index(axis) * len(up_EDF)
    flat = lambda a: a.reshape(-1, a.shape[-1])
    y = moe_blocks(flat(x), up_EDF, down_EFD, flat(expert) - first, flat(weight), block=block)
    return jax.lax.psum_scatter(y.reshape(x.shape), axis, scatter_dimension=0, tiled=True)

  rows, experts = sharding.spec('batch'), sharding.spec('expert')
  return jax.shard_map(local, mesh=mesh, in_specs=(rows, experts, experts, rows, rows), out_specs=rows,
                       check_vma=False)(x_BLD, up_EDF, down_EFD, expert_BLK, weight_BLK)


class MoE(nnx.Module):
  """Router (one, or one for each modality), E routed experts and one shared expert that every token passes."""

  def __init__(self, width: int, hidden: int, experts: int, top_k: int, shared: int, block: int, *, routers: int = 1,
               rngs: nnx.Rngs):
    self.top_k, self.block, self.routers = top_k, block, routers
    self.router = Linear(width, routers * experts, ('embed', None), rngs=rngs, init=lecun)
    self.up = sharding.param(rngs, (experts, width, 2 * hidden), ('expert', 'embed', 'mlp'), stacked_lecun)
    self.down = sharding.param(rngs, (experts, hidden, width), ('expert', 'mlp', 'embed'), stacked_lecun)
    self.shared = SwiGLU(width, shared, rngs=rngs) if shared else None

  def __call__(self, x_BLD: Float[Array, 'B L D'], modality_BL: Int[Array, 'B L'], bias_E: Float[Array, 'E'],
               mesh: Mesh) -> tuple[Float[Array, 'B L D'], moe_router.RouterStats]:
    b, l, d = x_BLD.shape
    valid_T = modality_BL.reshape(-1) > 0
    logits_TE = self.router(x_BLD.reshape(-1, d).astype(jnp.float32))
    if self.routers > 1:
      own_TM = jax.nn.one_hot(modality_BL.reshape(-1), self.routers)
      logits_TE = jnp.einsum('tme,tm->te', logits_TE.reshape(len(logits_TE), self.routers, -1), own_TM)
    routing = moe_router.route(logits_TE, bias_E, valid_T, top_k=self.top_k)
    split = lambda a: a.reshape(b, l, self.top_k)
    y_BLD = moe_expert_parallel(x_BLD, self.up[...].astype(x_BLD.dtype), self.down[...].astype(x_BLD.dtype),
                                split(routing.expert_TK), split(routing.weight_TK), block=self.block, mesh=mesh)
    if self.shared is not None:
      y_BLD = y_BLD + self.shared(x_BLD)
    return y_BLD, moe_router.stats(logits_TE, routing, modality_BL.reshape(-1))
