"""SwiGLU experts on the tokens of one device.

A dense reference, and two ways to compute only the experts that were chosen.
"""

import enum
from typing import Any, NamedTuple

import jax
from jax import Array
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax.nn.expert_loop import moe_loop
from omni_jax.nn.slots import (
  assign_blocks,
  assign_sorted,
  combine,
  dispatch,
  dispatch_choices,
)
from omni_jax.nn.tiles import LANES, tile

# Largest tile of the megablox kernel: rows, inner width, outer width. The rows are read
# again for every tile of the outer width.
MAX_TILE = (512, 512, 1024)

MAX_BLOCK = 1024  # slots

# Up to this number of tokens, computing an expert takes hardly longer than reading it: a
# chip computes 170 to 560 FLOPs while it reads a byte, which is a FLOP per token.
FEW_TOKENS = 256


class Experts(NamedTuple):
  """Weights of E experts, each `down(silu(gate(x)) · up(x))` (Shazeer 2020)."""

  gate_EDF: Array
  up_EDF: Array
  down_EFD: Array


class GroupedMatmul(enum.StrEnum):
  """Ways to multiply tokens with the weights of their experts.

  Compiled for a v5p (2^17 choices, 32 experts, 2048 to 768, forward and gradient),
  megablox needs 0.8 GB besides its operands and `jax.lax.ragged_dot` 1.5 GB. For a GPU
  `ragged_dot` becomes a dense product with every expert. docs/decisions.md (64) has the
  figures of the others.
  """

  # The share of every expert is rounded up to whole blocks: one batched matmul.
  BLOCKS = 'blocks'
  # The same blocks, one after the other: on a CPU, weights are not copied for each.
  LOOP = 'loop'
  # A Pallas kernel for TPU, over sorted tokens without gaps (Gale et al. 2022).
  MEGABLOX = 'megablox'

  @classmethod
  def of(cls, mesh: Mesh) -> 'GroupedMatmul':
    """Returns the fastest way on the devices of a mesh.

    The devices may belong to an absent machine, for which a program is only compiled.
    """
    by_platform = {'tpu': cls.MEGABLOX, 'cpu': cls.LOOP}
    return by_platform.get(mesh.devices.flat[0].platform, cls.BLOCKS)


def moe_reference(
  x_TD: Float[Array, 'T D'],
  weights: Experts,
  expert_TK: Int[Array, 'T K'],
  weight_TK: Float[Array, 'T K'],
) -> Float[Array, 'T D']:
  """Returns the weighted sum of the chosen experts.

  Every expert is computed on every token. All fast paths must equal the result.
  """
  hidden_ETF = jax.nn.silu(x_TD @ weights.gate_EDF) * (x_TD @ weights.up_EDF)
  chosen_TKE = jax.nn.one_hot(expert_TK, len(weights.up_EDF), dtype=x_TD.dtype)
  gate_TE = jnp.einsum('tke,tk->te', chosen_TKE, weight_TK.astype(x_TD.dtype))
  return jnp.einsum('etd,te->td', hidden_ETF @ weights.down_EFD, gate_TE)


def moe_blocks(
  x_TD: Float[Array, 'T D'],
  weights: Experts,
  expert_TK: Int[Array, 'T K'],
  weight_TK: Float[Array, 'T K'],
  *,
  block: int,
) -> Float[Array, 'T D']:
  """Returns the sum of the chosen experts, by one batched matmul over blocks.

  A block is `block` slots with the weights of their expert. No choice is dropped.
  """
  slots, expert_N, _ = assign_blocks(expert_TK, len(weights.up_EDF), block)
  gate_NDF, up_NDF, down_NFD = (take_experts(w, expert_N) for w in weights)
  blocks = len(expert_N)
  x_NbD = dispatch(x_TD, slots).reshape(blocks, block, x_TD.shape[1])
  weight_Z = dispatch_choices(weight_TK.astype(x_TD.dtype), slots)
  weight_Nb1 = weight_Z.reshape(blocks, block, 1)
  hidden_NbF = jax.nn.silu(x_NbD @ gate_NDF) * (x_NbD @ up_NDF) * weight_Nb1
  y_NbD = hidden_NbF @ down_NFD
  return combine(y_NbD.reshape(-1, x_TD.shape[1]), slots)


@jax.custom_vjp
def take_experts(w_Eab: Array, expert_N: Array) -> Float[Array, 'N a b']:
  """Returns the weights of the expert of each block.

  The gradient of an expert is the sum over its blocks, computed as a product with zeros
  and ones in fp32. A scatter would add one number at a time, in the type of the weights.
  """
  return w_Eab[expert_N]


def _take_experts_fwd(w_Eab: Array, expert_N: Array) -> tuple[Array, Any]:
  return take_experts(w_Eab, expert_N), (expert_N, jnp.arange(len(w_Eab)))


def _take_experts_bwd(residuals: Any, dw_Nab: Array) -> tuple[Array, None]:
  expert_N, number_E = residuals
  is_of_EN = number_E[:, None] == expert_N[None]
  is_of_EN = is_of_EN.astype(dw_Nab.dtype)
  return jnp.einsum('en,nab->eab', is_of_EN, dw_Nab), None


take_experts.defvjp(_take_experts_fwd, _take_experts_bwd)


def moe_megablox(
  x_TD: Float[Array, 'T D'],
  weights: Experts,
  expert_TK: Int[Array, 'T K'],
  weight_TK: Float[Array, 'T K'],
  *,
  interpret: bool = False,
) -> Float[Array, 'T D']:
  """Returns the sum of the chosen experts, by grouped matmuls over sorted choices.

  No choice is dropped.

  Args:
    interpret: run the kernel's own code without a TPU, for tests.
  """
  slots, size_E = assign_sorted(expert_TK, len(weights.up_EDF))

  def grouped_matmul(x_Zd, w_Edf):
    z = len(x_Zd)
    _, d, f = w_Edf.shape
    next_power_of_2 = 1 << (z - 1).bit_length()
    rows = max(LANES, min(MAX_TILE[0], next_power_of_2))
    # The kernel needs whole tiles of rows.
    padded_Zd = jnp.pad(x_Zd, ((0, -z % rows), (0, 0)))
    tiling = (rows, tile(d, MAX_TILE[1]), tile(f, MAX_TILE[2]))
    y_Zf = megablox.gmm(
      padded_Zd, w_Edf, size_E, x_Zd.dtype, tiling, interpret=interpret
    )
    return y_Zf[:z]

  x_ZD = dispatch(x_TD, slots)
  weight_Z1 = dispatch_choices(weight_TK.astype(x_TD.dtype), slots)[:, None]
  gate_ZF = jax.nn.silu(grouped_matmul(x_ZD, weights.gate_EDF))
  # Weighted before the last product, whose result no gradient then needs: remat does
  # not recompute it.
  hidden_ZF = gate_ZF * grouped_matmul(x_ZD, weights.up_EDF) * weight_Z1
  y_ZD = grouped_matmul(hidden_ZF, weights.down_EFD)
  # The kernel writes no rows after the last group; `combine` reads none of them.
  return combine(y_ZD, slots)


def moe_experts(
  x_TD: Array,
  weights: Experts,
  expert_TK: Array,
  weight_TK: Array,
  *,
  matmul: GroupedMatmul,
  block: int,
) -> Array:
  """Returns the sum of the chosen experts; choices outside [0, E) count as zero.

  With few tokens, as when replies are written, a TPU takes longer to read the weights
  than to compute every expert on every token. A kernel would also need the weights of
  its layer copied out of the stack of all layers; XLA reads them in place.

  Widths that are not multiples of the lanes are computed in blocks, on a TPU as well.
  """
  if matmul == GroupedMatmul.MEGABLOX and len(x_TD) <= FEW_TOKENS:
    return moe_reference(x_TD, weights, expert_TK, weight_TK)
  fills_lanes = all(n % LANES == 0 for n in weights.up_EDF.shape[1:])
  if matmul == GroupedMatmul.MEGABLOX and fills_lanes:
    return moe_megablox(x_TD, weights, expert_TK, weight_TK)
  if matmul == GroupedMatmul.LOOP:
    return moe_loop(x_TD, weights, expert_TK, weight_TK, block=block)
  if matmul == GroupedMatmul.BLOCKS:
    block = max(block, block_of_share(expert_TK.size // len(weights.up_EDF)))
  return moe_blocks(x_TD, weights, expert_TK, weight_TK, block=block)


def block_of_share(choices: int) -> int:
  """Returns the slots in a block, given an expert's share of the choices.

  Every block copies the weights of an expert, and every expert leaves half a block
  empty on average: about eight blocks for an expert cost little of both.
  """
  eighth = max(choices // 8, 1)
  return min(MAX_BLOCK, 2 ** (eighth.bit_length() - 1))
