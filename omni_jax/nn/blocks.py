"""Runs equal blocks one after the other, as a loop that XLA compiles once."""

from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from omni_jax.sharding import Role, role_of

# So many blocks are compiled one by one. A loop keeps what the backward pass needs in
# stacked arrays, which took 7 % of the step of configs/digits.py on a CPU.
FEW_BLOCKS = 4


def scan_blocks(
  apply: Callable[[Any, Any, Any], tuple[Any, Any]],
  blocks: Sequence[nnx.Module],
  carry: Any,
  inputs: Any = None,
  *,
  dtype: jax.typing.DTypeLike,
  policy: Callable[..., bool] | None = None,
) -> tuple[Any, Any]:
  """Returns the last carry and the outputs of all blocks, stacked.

  The weights are stacked for a loop. The compiler then sees one block instead of all
  of them, unless they are few.

  Args:
    apply: function of (block, carry, input) that returns (carry, output).
    blocks: blocks of the same structure and shapes.
    inputs: inputs of all blocks, stacked on a leading axis; None for none.
    dtype: type of the computation, see `cast_matrices`.
    policy: what the backward pass keeps of a block; None for everything.
  """
  graph, _ = nnx.split(blocks[0])
  weights = [cast_matrices(nnx.state(block), dtype) for block in blocks]
  stacked_weights = jax.tree.map(lambda *leaves: jnp.stack(leaves), *weights)

  def body(carry: Any, layer: Any) -> tuple[Any, Any]:
    own_weights, own_input = layer
    return apply(nnx.merge(graph, own_weights), carry, own_input)

  if policy is not None:
    # A scan prevents common-subexpression elimination by itself.
    body = jax.checkpoint(body, policy=policy, prevent_cse=False)
  unroll = len(blocks) if len(blocks) <= FEW_BLOCKS else 1
  return jax.lax.scan(body, carry, (stacked_weights, inputs), unroll=unroll)


def cast_matrices(weights: Any, dtype: jax.typing.DTypeLike) -> Any:
  """Returns weights with their matrices in the type of the computation.

  Norms and the router are computed in fp32.

  If the cast were inside a scan over layers, the gradients would be stacked in fp32
  although they are computed in `dtype`, which takes twice the memory. XLA moves such a
  cast out of the loop in any case.
  """

  def cast(variable: nnx.Variable) -> nnx.Variable:
    if role_of(variable) != Role.MATRIX:
      return variable
    return variable.replace(variable[...].astype(dtype))

  return jax.tree.map(cast, weights, is_leaf=lambda x: isinstance(x, nnx.Variable))
