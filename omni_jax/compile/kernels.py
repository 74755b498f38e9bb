"""What a custom call of a compiled program costs, such as a Pallas kernel."""

import math
import re
from typing import NamedTuple

from omni_jax.compile.hlo import Computation, Instruction, main_memory_bytes

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
}  # of the compiler's own, no work
# Products, each of queries · keys, of the kernels of jax that declare no estimate, by
# the beginning of their names. Blocks above the diagonal are left out.
# dq: scores, their gradient, dq; dkv: scores, their gradient, dk, dv.
SPLASH_PRODUCTS = {'splash_mha_fwd': 2, 'splash_mha_dq': 3, 'splash_mha_dkv': 4}
_ESTIMATE = re.compile(r'"?cost_estimate"?\s*:\s*\{([^}]*)\}')
_ESTIMATE_FIELD = re.compile(r'"?(\w+)"?\s*:\s*"?(\d+)')


class CallCost(NamedTuple):
  """What a custom call costs.

  Attributes:
    bytes: of main memory, read and written.
    known: whether its FLOPs are known; if not, they are given as 0.
  """

  flops: float
  bytes: float
  known: bool = True


def call_target(call: Instruction) -> str:
  """Returns the name of what a custom call calls."""
  return call.attribute('custom_call_target').strip('"')


def call_cost(call: Instruction, computation: Computation) -> CallCost:
  """Returns what a custom call costs by its declared estimate, or by its name."""
  if call_target(call) in FREE_TARGETS:
    return CallCost(0.0, 0.0)
  size = main_memory_bytes(call.shapes)
  for name in call.operands:
    size += main_memory_bytes(computation.by_name[name].shapes)
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

  Only the causal blocks are counted.
  """
  shapes = [computation.by_name[name].shapes[0] for name in call.operands]
  masks = [shape.dims[-2:] for shape in shapes if shape.dtype == 's8']
  query_blocks, key_blocks = masks[0] if masks else (1, 1)
  queries, keys = [
    shape.dims
    for shape in shapes
    if shape.dtype in ('bf16', 'f32') and len(shape.dims) >= 3
  ][:2]
  computed = 0
  for i in range(query_blocks):
    computed += min(key_blocks, -(-(i + 1) * key_blocks // query_blocks))
  whole = 2.0 * math.prod(queries) * keys[-2]
  return whole * computed / (query_blocks * key_blocks)
