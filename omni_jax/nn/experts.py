"""SwiGLU experts on tokens of one device: the dense reference, and two ways to compute only what was chosen."""

import enum
from typing import NamedTuple

import jax
from jax import Array
from jax.experimental.pallas.ops.tpu.megablox import ops as megablox
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax.nn.slots import (
  assign_blocks,
  assign_sorted,
  combine,
  dispatch,
  dispatch_choices,
)


class Experts(NamedTuple):
  """Weights of E experts, `down(silu(gate(x)) · up(x))` each (Shazeer 2020)."""

  gate_EDF: Array
  up_EDF: Array
  down_EFD: Array


class Grouped(enum.StrEnum):
  """How each expert's weights come to its tokens.

  Compiled for a v5p (2^17 choices, 32 experts, 2048 to 768, forward and gradient), megablox needs 0.8 GB beside its
  operands and `jax.lax.ragged_dot` 1.5 GB. On a CPU blocks are the fastest.
  """

  BLOCKS = (
    'blocks'  # every expert's share rounded up to whole blocks, then one batched matmul
  )
  MEGABLOX = 'megablox'  # a Pallas kernel for TPU, over sorted tokens without gaps (Gale et al. 2022)

  @classmethod
  def of(cls, mesh: Mesh) -> 'Grouped':
    """The fastest on the devices of a mesh, which may be those of a machine that is only compiled for."""
    return cls.MEGABLOX if mesh.devices.flat[0].platform == 'tpu' else cls.BLOCKS


def moe_reference(
  x_TD: Float[Array, 'T D'],
  weights: Experts,
  expert_TK: Int[Array, 'T K'],
  weight_TK: Float[Array, 'T K'],
) -> Float[Array, 'T D']:
  """Every expert on every token, then the weighted choice: what the fast paths must equal."""
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
  """Dropless experts as one batched matmul over blocks of `block` slots, each with its expert's weights."""
  slots, expert_N = assign_blocks(expert_TK, len(weights.up_EDF), block)
  gate_NDF, up_NDF, down_NFD = (w[expert_N] for w in weights)
  x_NbD = dispatch(x_TD, slots).reshape(len(expert_N), block, x_TD.shape[1])
  weight_Nb1 = dispatch_choices(weight_TK.astype(x_TD.dtype), slots).reshape(
    len(expert_N), block, 1
  )
  y_NbD = (jax.nn.silu(x_NbD @ gate_NDF) * (x_NbD @ up_NDF) * weight_Nb1) @ down_NFD
  return combine(y_NbD.reshape(-1, x_TD.shape[1]), slots)


LANES = 128  # of a TPU
TILE = (
  512,
  512,
  1024,
)  # at most: rows, inner width, outer width, for whose every tile the rows are read again


def _tile(width: int, most: int) -> int:
  """Largest whole number of lanes that divides a width, so that no tile is half empty."""
  return next((t for t in range(most, 0, -LANES) if width % t == 0), min(width, most))


def moe_megablox(
  x_TD: Float[Array, 'T D'],
  weights: Experts,
  expert_TK: Int[Array, 'T K'],
  weight_TK: Float[Array, 'T K'],
  *,
  interpret: bool = False,
) -> Float[Array, 'T D']:
  """Dropless experts as grouped matmuls over the sorted choices.

  Args:
    interpret: run the kernel's own code without a TPU, for tests.
  """
  slots, size_E = assign_sorted(expert_TK, len(weights.up_EDF))

  def grouped(x_Zd, w_Edf):
    z, (_, d, f) = len(x_Zd), w_Edf.shape
    rows = max(LANES, min(TILE[0], 1 << (z - 1).bit_length()))
    padded_Zd = jnp.pad(
      x_Zd, ((0, -z % rows), (0, 0))
    )  # the kernel wants whole tiles of rows
    tile = (rows, _tile(d, TILE[1]), _tile(f, TILE[2]))
    return megablox.gmm(
      padded_Zd, w_Edf, size_E, x_Zd.dtype, tile, interpret=interpret
    )[:z]

  x_ZD = dispatch(x_TD, slots)
  weight_Z1 = dispatch_choices(weight_TK.astype(x_TD.dtype), slots)[:, None]
  # Weighted before the last product, whose result is then needed for no gradient: remat leaves it out.
  hidden_ZF = (
    jax.nn.silu(grouped(x_ZD, weights.gate_EDF))
    * grouped(x_ZD, weights.up_EDF)
    * weight_Z1
  )
  return combine(
    grouped(hidden_ZF, weights.down_EFD), slots
  )  # the kernel writes no rows behind the last group


def moe_experts(
  x_TD: Array,
  weights: Experts,
  expert_TK: Array,
  weight_TK: Array,
  *,
  grouped: Grouped,
  block: int,
) -> Array:
  """The choices outside [0, E) count as zero. Widths of no whole lanes are computed in blocks on a TPU, too."""
  if grouped == Grouped.MEGABLOX and not any(
    n % LANES for n in weights.up_EDF.shape[1:]
  ):
    return moe_megablox(x_TD, weights, expert_TK, weight_TK)
  return moe_blocks(x_TD, weights, expert_TK, weight_TK, block=block)
