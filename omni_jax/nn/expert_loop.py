"""Experts on a CPU: a loop over blocks of tokens that share an expert.

A block reads the weights of its expert where they are, and blocks that no token uses
are not computed. The result is that of `experts.moe_reference`.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int

from omni_jax.nn.slots import assign_blocks, combine, dispatch, dispatch_choices


class LoopInputs(NamedTuple):
  """What the loop reads.

  Attributes:
    x_ZD: token in each slot.
    weight_Z: weight of the choice in each slot.
    gate_EDF, up_EDF, down_EFD: weights of the experts.
    expert_N: expert of each block; None among gradients.
    used: number of blocks that hold tokens; they are the first ones. None among
      gradients.
  """

  x_ZD: Array
  weight_Z: Array
  gate_EDF: Array
  up_EDF: Array
  down_EFD: Array
  expert_N: Any
  used: Any


class LoopOutputs(NamedTuple):
  """What the loop writes; slots of unused blocks are zero.

  Attributes:
    y_ZD: weighted output of each slot's expert.
    gate_ZF, up_ZF: values that the gradient needs.
  """

  y_ZD: Array
  gate_ZF: Array
  up_ZF: Array


def moe_loop(
  x_TD: Float[Array, 'T D'],
  weights: Any,
  expert_TK: Int[Array, 'T K'],
  weight_TK: Float[Array, 'T K'],
  *,
  block: int,
) -> Float[Array, 'T D']:
  """Returns the sum of the chosen experts; no choice is dropped.

  Args:
    weights: an `experts.Experts`.
    block: number of slots in a block.
  """
  blocks = assign_blocks(expert_TK, len(weights.up_EDF), block)
  inputs = LoopInputs(
    dispatch(x_TD, blocks.slots),
    dispatch_choices(weight_TK.astype(x_TD.dtype), blocks.slots),
    weights.gate_EDF,
    weights.up_EDF,
    weights.down_EFD,
    blocks.expert_N,
    blocks.used,
  )
  return combine(_all_blocks(inputs, block), blocks.slots)


def _part(x_Z: Array, number: Array, block: int) -> Array:
  """Returns the slots of a block."""
  return jax.lax.dynamic_slice_in_dim(x_Z, number * block, block)


def _with_part(x_Z: Array, part: Array, number: Array, block: int) -> Array:
  """Returns all slots after those of a block have been replaced."""
  return jax.lax.dynamic_update_slice_in_dim(x_Z, part, number * block, axis=0)


def _run(inputs: LoopInputs, block: int) -> LoopOutputs:
  z = len(inputs.x_ZD)
  hidden = inputs.up_EDF.shape[2]
  empty_ZF = jnp.zeros((z, hidden), inputs.x_ZD.dtype)

  def compute(number: Array, outputs: LoopOutputs) -> LoopOutputs:
    expert = inputs.expert_N[number]
    x_bD = _part(inputs.x_ZD, number, block)
    weight_b1 = _part(inputs.weight_Z, number, block)[:, None]
    gate_bF = x_bD @ inputs.gate_EDF[expert]
    up_bF = x_bD @ inputs.up_EDF[expert]
    hidden_bF = jax.nn.silu(gate_bF) * up_bF * weight_b1
    results = LoopOutputs(hidden_bF @ inputs.down_EFD[expert], gate_bF, up_bF)
    write = partial(_with_part, number=number, block=block)
    return jax.tree.map(write, outputs, results)

  start = LoopOutputs(jnp.zeros_like(inputs.x_ZD), empty_ZF, empty_ZF)
  return jax.lax.fori_loop(0, inputs.used, compute, start)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _all_blocks(inputs: LoopInputs, block: int) -> Float[Array, 'Z D']:
  """Returns the weighted output of the expert of every slot."""
  return _run(inputs, block).y_ZD


def _forward(inputs: LoopInputs, block: int) -> tuple[Array, Any]:
  outputs = _run(inputs, block)
  return outputs.y_ZD, (inputs, outputs.gate_ZF, outputs.up_ZF)


def _backward(block: int, residuals: Any, dy_ZD: Array) -> tuple[LoopInputs]:
  """Returns the gradients; those of the weights are summed over blocks in fp32."""
  inputs, gate_ZF, up_ZF = residuals

  def accumulate(number: Array, gradients: LoopInputs) -> LoopInputs:
    expert = inputs.expert_N[number]
    part = partial(_part, number=number, block=block)
    write = partial(_with_part, number=number, block=block)
    x_bD = part(inputs.x_ZD)
    dy_bD = part(dy_ZD)
    weight_b1 = part(inputs.weight_Z)[:, None]
    gate_bF = part(gate_ZF)
    up_bF = part(up_ZF)
    sigmoid_bF = jax.nn.sigmoid(gate_bF)
    silu_bF = gate_bF * sigmoid_bF
    hidden_bF = silu_bF * up_bF
    dweighted_bF = jnp.einsum('bd,fd->bf', dy_bD, inputs.down_EFD[expert])
    dweight_b = (dweighted_bF * hidden_bF).sum(axis=1)
    dhidden_bF = dweighted_bF * weight_b1
    dup_bF = dhidden_bF * silu_bF
    dsilu_bF = sigmoid_bF + silu_bF * (1 - sigmoid_bF)
    dgate_bF = dhidden_bF * up_bF * dsilu_bF
    dx_bD = jnp.einsum('bf,df->bd', dgate_bF, inputs.gate_EDF[expert])
    dx_bD += jnp.einsum('bf,df->bd', dup_bF, inputs.up_EDF[expert])

    def add_product(total_Exy: Array, left_bx: Array, right_by: Array) -> Array:
      product = jnp.einsum(
        'bx,by->xy', left_bx, right_by, preferred_element_type=jnp.float32
      )
      return total_Exy.at[expert].add(product)

    return gradients._replace(
      x_ZD=write(gradients.x_ZD, dx_bD),
      weight_Z=write(gradients.weight_Z, dweight_b),
      gate_EDF=add_product(gradients.gate_EDF, x_bD, dgate_bF),
      up_EDF=add_product(gradients.up_EDF, x_bD, dup_bF),
      down_EFD=add_product(gradients.down_EFD, hidden_bF * weight_b1, dy_bD),
    )

  in_fp32 = lambda w: jnp.zeros(w.shape, jnp.float32)
  start: LoopInputs = inputs._replace(
    x_ZD=jnp.zeros_like(inputs.x_ZD),
    weight_Z=jnp.zeros_like(inputs.weight_Z),
    gate_EDF=in_fp32(inputs.gate_EDF),
    up_EDF=in_fp32(inputs.up_EDF),
    down_EFD=in_fp32(inputs.down_EFD),
    expert_N=None,
    used=None,
  )
  gradients = jax.lax.fori_loop(0, inputs.used, accumulate, start)
  floats = inputs._replace(expert_N=None, used=None)
  as_given = lambda gradient, value: gradient.astype(value.dtype)
  return (jax.tree.map(as_given, gradients, floats),)


_all_blocks.defvjp(_forward, _backward)
