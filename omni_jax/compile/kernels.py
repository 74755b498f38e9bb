"""Computes what a custom call of a compiled program costs, such as a Pallas kernel."""

import math
import re
from typing import NamedTuple

from omni_jax.compile.hlo import Computation, Instruction, main_memory_bytes

# The compiler's own targets, which do no work.
FREE_TARGETS = {
  'ConcatBitcast',
  'AllocateBuffer',
  'Sharding',
  'AssumeGatherIndicesInBound',
  'annotate_device_placement',
  'AsyncCollectiveStart',
  'AsyncCollectiveDone',
  'GatherScatterIndicesBitpacked',
  'PrepareAsyncCallStart',
  'PrepareAsyncCallDone',
}
# Number of products of queries and keys in the JAX kernels that declare no estimate, by
# the prefix of the kernel's name. Blocks above the diagonal are left out.
# dq: scores, their gradient, dq; dkv: scores, their gradient, dk, dv.
SPLASH_PRODUCTS = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}
_ESTIMATE = re.compile(r'"?cost_estimate"?\s*:\s*\{([^}]*)\}')
_ESTIMATE_FIELD = re.compile(r'"?(\w+)"?\s*:\s*"?(\d+)')


class CallCost(NamedTuple):
  """The cost of a custom call.

  Attributes:
    flops: FLOPs of one call; 0 where they are not known.
    bytes: bytes of main memory that one call reads and writes.
    known: whether the FLOPs are known.
  """

  flops: float
  bytes: float
  known: bool = True


def call_target(call: Instruction) -> str:
  """Returns the name of the target of a custom call."""
  return call.attribute('custom_call_target').strip('"')


def call_cost(call: Instruction, computation: Computation) -> CallCost:
  """Returns the cost of a custom call, from its declared estimate or its name."""
  if call_target(call) in FREE_TARGETS:
    return CallCost(0.0, 0.0)
  size = main_memory_bytes(call.shapes)
  for operand in computation.operands(call):
    size += main_memory_bytes(operand.shapes)
  if match := _ESTIMATE.search(call.rest):
    fields = _ESTIMATE_FIELD.findall(match[1])
    estimate = {name: float(value) for name, value in fields}
    return CallCost(estimate.get('flops', 0.0), estimate.get('bytes_accessed', size))
  for name, products in SPLASH_PRODUCTS.items():
    if call.name.startswith(name):
      return CallCost(products * splash_product_flops(call, computation), size)
  return CallCost(0.0, size, known=False)


def splash_product_flops(call: Instruction, computation: Computation) -> float:
  """Returns the FLOPs of one product of queries and keys in a splash kernel.

  Only the causal blocks are counted. The first two operands of three or more dimensions
  are the queries and the keys; an operand of type s8 is the mask of blocks.
  """
  arrays: list[tuple[int, ...]] = []
  masks: list[tuple[int, ...]] = []
  for operand in computation.operands(call):
    shape = operand.shapes[0]
    if shape.dtype == 's8':
      masks.append(shape.dims[-2:])
    elif shape.dtype in ('bf16', 'f32') and len(shape.dims) >= 3:
      arrays.append(shape.dims)
  query_blocks, key_blocks = masks[0] if masks else (1, 1)
  queries, keys = arrays[:2]
  causal_blocks = 0
  for i in range(query_blocks):
    causal_blocks += min(key_blocks, -(-(i + 1) * key_blocks // query_blocks))
  all_blocks = query_blocks * key_blocks
  full_flops = 2.0 * math.prod(queries) * keys[-2]
  return full_flops * causal_blocks / all_blocks
