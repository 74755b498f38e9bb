"""Attention over the mesh: rows over the batch axes, heads over `tensor`, the positions of a row over `context`.

Positions: the devices that share a row gather its keys and values (as Llama 3 was trained, arXiv 2407.21783) and attend
with their own queries: exact with every mask and kernel. With grouped heads the keys are a fraction of the activations;
a ring would not hold them whole, but must merge softmaxes and hide its steps behind matmuls.
"""

from functools import partial
import math

import jax
from jax import Array
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
  """What `attention_reference` gives, by the best kernel for the mesh's devices.

  A dimension that the mesh does not divide is not split: its devices all do the same.

  Args:
    mesh: None where XLA may lay it out as it likes: small attention, in heads and encoders.
    kernel: instead of the best one, for tests; splash is interpreted where there is no TPU.
  """
  if mesh is None:
    return _run(
      kernel or kernels.choose(None, q_BLHA, k_BSGA, reach),
      q_BLHA,
      k_BSGA,
      v_BSGA,
      reach,
      None,
    )
  k_BSGA, v_BSGA = (
    _enough_heads(x, q_BLHA.shape[2], sharding.ways(mesh, 'act_heads'))
    for x in (k_BSGA, v_BSGA)
  )
  (b, l, h, _), g = q_BLHA.shape, k_BSGA.shape[2]
  fits = partial(sharding.dividing, mesh)
  rows, heads, length = (
    fits('batch', b),
    fits('act_heads', h, g),
    fits('length', l, l // 2),
  )  # two chunks for each
  parts = sharding.ways(mesh, 'length') if length else 1
  own = (
    length if reach.key_segment_BS is None else None
  )  # keys that are the row itself are split as it is
  device = mesh.devices.flat[0]
  local = lambda x, *axes: jax.ShapeDtypeStruct(
    NamedSharding(mesh, sharding.spec(*axes)).shard_shape(x.shape), x.dtype
  )
  kernel = kernel or kernels.choose(
    device, local(q_BLHA, rows, length, heads), local(k_BSGA, rows, None, heads), reach
  )
  position_NL = balanced_positions(l, parts)
  splash = splash_spec = None
  if kernel is Kernel.SPLASH:
    heads_here = local(q_BLHA, rows, length, heads).shape[2]
    splash = kernels.splash_kernel(
      position_NL, heads_here, interpret=device.platform != 'tpu'
    )
    splash_spec = splash.manual_sharding_spec(
      NamedSharding(mesh, sharding.spec(None, length))
    )
  keys = sharding.spec(rows, own, heads, None)
  lines = sharding.spec(rows, length)
  reach_spec = Reach(
    lines,
    None if reach.until_BL is None else lines,
    None if reach.key_segment_BS is None else sharding.spec(rows, None),
  )
  here = partial(_local, kernel, position_NL)
  if mesh.size == 1:
    return here(q_BLHA, k_BSGA, v_BSGA, reach, splash)
  queries = sharding.spec(rows, length, heads, None)
  return jax.shard_map(
    here,
    mesh=mesh,
    in_specs=(queries, keys, keys, reach_spec, splash_spec),
    out_specs=queries,
    check_vma=False,
  )(q_BLHA, k_BSGA, v_BSGA, reach, splash)


def _local(
  kernel: Kernel,
  position_NL: np.ndarray,
  q_BLHA: Array,
  k_BSGA: Array,
  v_BSGA: Array,
  reach: Reach,
  splash: object,
) -> Array:
  """What one device does, with its rows, heads and positions."""
  parts = len(position_NL)
  if parts == 1:
    return _run(kernel, q_BLHA, k_BSGA, v_BSGA, reach, splash)
  gather = partial(jax.lax.all_gather, axis_name=AXIS, axis=1, tiled=True)
  segment_BL = gather(reach.segment_BL)
  if reach.key_segment_BS is None:
    k_BSGA, v_BSGA = gather(k_BSGA), gather(v_BSGA)
  position_L = jnp.asarray(position_NL)[jax.lax.axis_index(AXIS)]
  until_BL = (
    position_L[None]
    if reach.until_BL is None
    else gather(reach.until_BL)[:, position_L]
  )
  mine = Reach(
    segment_BL[:, position_L],
    jnp.broadcast_to(until_BL, reach.segment_BL.shape),
    segment_BL if reach.key_segment_BS is None else reach.key_segment_BS,
  )
  y_BLHA = _run(kernel, _to_balanced(q_BLHA, parts), k_BSGA, v_BSGA, mine, splash)
  return _from_balanced(y_BLHA, parts)


def _run(
  kernel: Kernel,
  q_BLHA: Array,
  k_BSGA: Array,
  v_BSGA: Array,
  reach: Reach,
  splash: object,
) -> Array:
  if kernel is Kernel.REFERENCE:
    return attention_reference(q_BLHA, k_BSGA, v_BSGA, reach)
  if kernel is Kernel.PIECES:
    return kernels.in_pieces(q_BLHA, k_BSGA, v_BSGA, reach)
  if kernel is Kernel.CUDNN:
    y_BLHA = kernels.cudnn(q_BLHA, k_BSGA, v_BSGA, reach)
  else:
    y_BLHA = kernels.by_splash(q_BLHA, k_BSGA, v_BSGA, reach, splash)
  return jnp.where((reach.segment_BL > 0)[..., None, None], y_BLHA, 0)


def _enough_heads(x_BSGA: Array, heads: int, devices: int) -> Array:
  """Key heads repeated until the devices divide them, where these divide the query heads."""
  times = devices // math.gcd(x_BSGA.shape[2], devices)
  return (
    jnp.repeat(x_BSGA, times, axis=2)
    if heads % (x_BSGA.shape[2] * times) == 0
    else x_BSGA
  )


# The last positions of a causal row see the most. So device t of n attends for the chunks t and 2n - 1 - t of 2n, and
# all have the same to do (as in Llama 3). Only queries and what comes of them travel: every device holds chunks 2t and
# 2t + 1, so each of its halves goes to one other, and comes back.
def _home(chunk: int, parts: int) -> int:
  return min(chunk, 2 * parts - 1 - chunk)


def balanced_positions(length: int, parts: int) -> np.ndarray:
  """Numbers of the positions that each of the `parts` devices attends for."""
  chunk_PL = np.arange(length, dtype=np.int32).reshape(
    2 * parts if parts > 1 else 1, -1
  )
  if parts == 1:
    return chunk_PL
  even = [
    min(c for c in range(0, 2 * parts, 2) if _home(c, parts) == t) for t in range(parts)
  ]
  odd = [
    min(c for c in range(1, 2 * parts, 2) if _home(c, parts) == t) for t in range(parts)
  ]
  return np.concatenate([chunk_PL[even], chunk_PL[odd]], axis=1)


def _to_balanced(x_BLHA: Array, parts: int) -> Array:
  halves = jnp.split(x_BLHA, 2, axis=1)
  routes = [[(t, _home(2 * t + i, parts)) for t in range(parts)] for i in (0, 1)]
  return jnp.concatenate(
    [jax.lax.ppermute(x, AXIS, route) for x, route in zip(halves, routes, strict=True)],
    axis=1,
  )


def _from_balanced(x_BLHA: Array, parts: int) -> Array:
  halves = jnp.split(x_BLHA, 2, axis=1)
  routes = [[(_home(2 * t + i, parts), t) for t in range(parts)] for i in (0, 1)]
  return jnp.concatenate(
    [jax.lax.ppermute(x, AXIS, route) for x, route in zip(halves, routes, strict=True)],
    axis=1,
  )
