"""Attention over the mesh.

Rows are split over the batch axes, heads over `tensor`, the positions of a row over
`context`.

Devices that share a row gather its keys and values (as in the training of Llama 3,
arXiv 2407.21783) and attend with their own queries, which is exact with every mask and
kernel. With grouped heads the keys are a fraction of the activations; a ring would not
hold all of them at once, but has to merge softmaxes and to hide its steps behind
matmuls.
"""

from collections.abc import Sequence
from functools import partial
import math
from typing import Any

import jax
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import (
  SplashAttentionKernel,
)
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Float
import numpy as np

from omni_jax import sharding
from omni_jax.nn import attention_kernels as kernels
from omni_jax.nn.attention_kernels import Kernel
from omni_jax.nn.reach import attention_reference, Reach

AXIS = sharding.CONTEXT_AXIS


def attend(
  q_BLHA: Float[Array, 'B L H A'],
  k_BSGA: Float[Array, 'B S G A'],
  v_BSGA: Float[Array, 'B S G A'],
  reach: Reach,
  mesh: Mesh | None,
  kernel: Kernel | None = None,
) -> Float[Array, 'B L H A']:
  """Returns `attention_reference`, computed by the best kernel for the mesh's devices.

  A dimension that the mesh does not divide is not split: each device computes all of
  it.

  Args:
    mesh: None lets XLA choose the layout: small attention, in heads and encoders.
    kernel: used instead of the best one, for tests; without a TPU splash is
      interpreted.
  """
  if mesh is None:
    kernel = kernel or kernels.choose(None, q_BLHA, k_BSGA, reach)
    return _run(kernel, q_BLHA, k_BSGA, v_BSGA, reach, None)
  tensor_ways = sharding.num_shards(mesh, 'act_heads')
  k_BSGA = _enough_heads(k_BSGA, q_BLHA.shape[2], tensor_ways)
  v_BSGA = _enough_heads(v_BSGA, q_BLHA.shape[2], tensor_ways)
  b, l, h, _ = q_BLHA.shape
  split_axis = partial(sharding.axis_if_divisible, mesh)
  rows = split_axis('batch', b)
  heads = split_axis('act_heads', h, k_BSGA.shape[2])
  # Each device takes two chunks of the positions.
  length = split_axis('length', l, l // 2)
  parts = sharding.num_shards(mesh, 'length') if length else 1
  position_NL = balanced_positions(l, parts)
  device = mesh.devices.flat[0]
  local_q = _share(mesh, q_BLHA, rows, length, heads)
  if kernel is None:
    local_k = _share(mesh, k_BSGA, rows, None, heads)
    kernel = kernels.choose(device, local_q, local_k, reach)
  splash = None
  splash_spec = None
  if kernel is Kernel.SPLASH:
    interpret = device.platform != 'tpu'
    splash = kernels.splash_kernel(position_NL, local_q.shape[2], interpret=interpret)
    position_sharding = NamedSharding(mesh, sharding.spec(None, length))
    splash_spec = splash.manual_sharding_spec(position_sharding)
  local = partial(_local, kernel, position_NL)
  if mesh.size == 1:
    return local(q_BLHA, k_BSGA, v_BSGA, reach, splash)
  # Keys that are the row's own positions are split as the queries are.
  key_length = length if reach.key_segment_BS is None else None
  query_spec = sharding.spec(rows, length, heads, None)
  key_spec = sharding.spec(rows, key_length, heads, None)
  reach_spec = _reach_spec(reach, rows, length)
  return jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(query_spec, key_spec, key_spec, reach_spec, splash_spec),
    out_specs=query_spec,
    check_vma=False,
  )(q_BLHA, k_BSGA, v_BSGA, reach, splash)


def _share(mesh: Mesh, x: Array, *axes: str | None) -> jax.ShapeDtypeStruct:
  """Returns the shape of what one device holds of an array."""
  named = NamedSharding(mesh, sharding.spec(*axes))
  return jax.ShapeDtypeStruct(named.shard_shape(x.shape), x.dtype)


def _reach_spec(reach: Reach, rows: str | None, length: str | None) -> Reach:
  """Returns the PartitionSpecs of a reach, None where it has no array."""
  queries = sharding.spec(rows, length)
  keys = sharding.spec(rows, None)
  specs: list[Any] = [
    queries,
    None if reach.until_BL is None else queries,
    None if reach.key_segment_BS is None else keys,
  ]
  return Reach._make(specs)


def _local(
  kernel: Kernel,
  position_NL: np.ndarray,
  q_BLHA: Array,
  k_BSGA: Array,
  v_BSGA: Array,
  reach: Reach,
  splash: SplashAttentionKernel | None,
) -> Array:
  """Returns the attention of one device, for its rows, heads and positions."""
  parts = len(position_NL)
  if parts == 1:
    return _run(kernel, q_BLHA, k_BSGA, v_BSGA, reach, splash)
  gather = partial(jax.lax.all_gather, axis_name=AXIS, axis=1, tiled=True)
  segment_BL = gather(reach.segment_BL)
  key_segment_BS = reach.key_segment_BS
  if key_segment_BS is None:
    k_BSGA = gather(k_BSGA)
    v_BSGA = gather(v_BSGA)
    key_segment_BS = segment_BL
  position_L = jnp.asarray(position_NL)[jax.lax.axis_index(AXIS)]
  if reach.until_BL is None:
    until_BL = position_L[None]
  else:
    gathered_BL = gather(reach.until_BL)
    until_BL = gathered_BL[:, position_L]
  own_reach = Reach(
    segment_BL[:, position_L],
    jnp.broadcast_to(until_BL, reach.segment_BL.shape),
    key_segment_BS,
  )
  own_q_BLHA = _to_balanced(q_BLHA, parts)
  y_BLHA = _run(kernel, own_q_BLHA, k_BSGA, v_BSGA, own_reach, splash)
  return _from_balanced(y_BLHA, parts)


def _run(
  kernel: Kernel,
  q_BLHA: Array,
  k_BSGA: Array,
  v_BSGA: Array,
  reach: Reach,
  splash: SplashAttentionKernel | None,
) -> Array:
  """Returns the attention that a kernel computes; zero for queries that see nothing."""
  if kernel is Kernel.REFERENCE:
    return attention_reference(q_BLHA, k_BSGA, v_BSGA, reach)
  if kernel is Kernel.PIECES:
    return kernels.in_pieces(q_BLHA, k_BSGA, v_BSGA, reach)
  if kernel is Kernel.CUDNN:
    y_BLHA = kernels.cudnn(q_BLHA, k_BSGA, v_BSGA, reach)
  elif kernel is Kernel.CUDNN_PACKED:
    y_BLHA = kernels.cudnn_packed(q_BLHA, k_BSGA, v_BSGA, reach.segment_BL)
  else:
    assert splash is not None
    y_BLHA = kernels.by_splash(q_BLHA, k_BSGA, v_BSGA, reach, splash)
  return jnp.where((reach.segment_BL > 0)[..., None, None], y_BLHA, 0)


def _enough_heads(x_BSGA: Array, query_heads: int, devices: int) -> Array:
  """Returns keys or values whose heads are repeated until the devices divide them.

  They stay as they are if the repeated heads do not divide the query heads.
  """
  key_heads = x_BSGA.shape[2]
  times = devices // math.gcd(key_heads, devices)
  if query_heads % (key_heads * times):
    return x_BSGA
  return jnp.repeat(x_BSGA, times, axis=2)


# The last positions of a causal row see the most keys. Device t of n therefore attends
# for the chunks t and 2n - 1 - t of 2n, so that all devices do equal work (as in Llama
# 3). Only queries and outputs travel: a device holds the chunks 2t and 2t + 1, sends
# each of these halves to one other device, and gets the outputs back.
def _device_of(chunk: int, parts: int) -> int:
  """Returns the device that attends for a chunk."""
  return min(chunk, 2 * parts - 1 - chunk)


def balanced_positions(length: int, parts: int) -> np.ndarray:
  """Returns the positions that each of N devices attends for, of shape (N, L / N)."""
  position_L = np.arange(length, dtype=np.int32)
  if parts == 1:
    return position_L.reshape(1, -1)
  first_N = np.arange(parts)
  second_N = 2 * parts - 1 - first_N
  is_even_N = first_N % 2 == 0
  even_N = np.where(is_even_N, first_N, second_N)
  odd_N = np.where(is_even_N, second_N, first_N)
  chunks = position_L.reshape(2 * parts, -1)
  return np.concatenate([chunks[even_N], chunks[odd_N]], axis=1)


def _to_balanced(x_BLHA: Array, parts: int) -> Array:
  """Returns the positions that this device attends for, received from their holders."""
  to_even = [(t, _device_of(2 * t, parts)) for t in range(parts)]
  to_odd = [(t, _device_of(2 * t + 1, parts)) for t in range(parts)]
  return _exchange(x_BLHA, to_even, to_odd)


def _from_balanced(x_BLHA: Array, parts: int) -> Array:
  """Returns the positions that this device holds: the inverse of `_to_balanced`."""
  from_even = [(_device_of(2 * t, parts), t) for t in range(parts)]
  from_odd = [(_device_of(2 * t + 1, parts), t) for t in range(parts)]
  return _exchange(x_BLHA, from_even, from_odd)


def _exchange(
  x_BLHA: Array,
  even_routes: Sequence[tuple[int, int]],
  odd_routes: Sequence[tuple[int, int]],
) -> Array:
  """Sends the even and odd chunks of the positions along (source, target) routes."""
  even, odd = jnp.split(x_BLHA, 2, axis=1)
  even = jax.lax.ppermute(even, AXIS, even_routes)
  odd = jax.lax.ppermute(odd, AXIS, odd_routes)
  return jnp.concatenate([even, odd], axis=1)
