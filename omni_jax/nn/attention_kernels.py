"""Attention kernels and the choice between them.

Splash runs on TPU, cuDNN on GPU; elsewhere XLA attends in pieces or all at once. Each
kernel takes the arguments of `attention_reference` and returns the same result, except
for queries that see nothing: the caller sets those to zero (`context_parallel.attend`).
"""

from collections.abc import Callable
import enum
from functools import partial
from typing import Any, NamedTuple

import jax
from jax import Array

# The public function passes lengths to cuDNN, but no offsets.
from jax._src.cudnn import fused_attention_stablehlo
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
import jax.numpy as jnp
from jaxtyping import Int
import numpy as np

from omni_jax.nn.reach import attention_reference, mask_of, Reach
from omni_jax.nn.tiles import LANES, tile

MAX_BLOCK = 512  # positions in a tile of splash
# Above this number of logits per head XLA attends in pieces: 4096 queries and keys are
# 16 pieces of 256 queries.
MANY_LOGITS = 2**20
MAX_CUDNN_MASK = 2**26  # elements of the L×S mask that cuDNN needs for most reaches
AMPERE = (8, 0)  # compute capabilities, from which on cuDNN has flash attention …
HOPPER = (9, 0)  # … and takes several segments in a row
MAX_SEGMENTS = 16  # in a row that cuDNN attends to without a mask
# Name of the kernel's outputs, for a policy of jax.checkpoint that keeps them.
SAVED = 'attention'


class Kernel(enum.Enum):
  """Implementation of attention."""

  REFERENCE = 'reference'  # XLA, all logits at once
  PIECES = 'pieces'  # XLA, a few queries at a time
  SPLASH = 'splash'  # Pallas, TPU
  CUDNN = 'cudnn'  # GPU, with a mask
  CUDNN_PACKED = 'cudnn_packed'  # GPU, causal rows


def choose(
  device: Any,
  q: Array | jax.ShapeDtypeStruct,
  k: Array | jax.ShapeDtypeStruct,
  reach: Reach,
) -> Kernel:
  """Returns the fastest kernel that takes these shapes on this kind of device.

  Where there are many logits, it never holds all L×S of them. The choice depends on a
  device of the mesh, not on jax's default device, so that a program compiled ahead of
  time for an absent TPU is the program that runs there.

  Args:
    device: one of the devices that will run it, or a stand-in for one; None if only XLA
      is suitable.
    q, k: the share of one device, (B, L, H, A) and (B, S, G, A).
  """
  if _fits_splash(device, q, k, reach):
    return Kernel.SPLASH
  if _fits_cudnn(device, q, k):
    is_row = reach.is_causal_row and q.shape[1] == k.shape[1]
    if is_row and _capability(device) >= HOPPER:
      return Kernel.CUDNN_PACKED
    if q.shape[1] * k.shape[1] <= MAX_CUDNN_MASK:
      return Kernel.CUDNN
  logits = q.shape[1] * k.shape[1]
  return Kernel.PIECES if logits > MANY_LOGITS else Kernel.REFERENCE


def _fits_splash(
  device: Any,
  q: Array | jax.ShapeDtypeStruct,
  k: Array | jax.ShapeDtypeStruct,
  reach: Reach,
) -> bool:
  if device is None or device.platform != 'tpu' or not reach.is_causal_row:
    return False
  return q.shape[1] % LANES == 0 and k.shape[1] % LANES == 0


def _fits_cudnn(
  device: Any, q: Array | jax.ShapeDtypeStruct, k: Array | jax.ShapeDtypeStruct
) -> bool:
  if device is None or device.platform != 'gpu':
    return False
  if q.dtype not in (jnp.bfloat16, jnp.float16) or _capability(device) < AMPERE:
    return False
  _, queries, _, width = q.shape
  keys = k.shape[1]
  fits_width = width % 8 == 0 and width <= 128
  fits_length = queries % 2 == 0 and keys % 2 == 0
  return fits_width and fits_length


def _capability(device: Any) -> tuple[int, ...]:
  """Returns the compute capability of an NVIDIA GPU, such as (9, 0); () for others.

  AMD's devices report a name instead of a number.
  """
  major, _, minor = str(device.compute_capability).partition('.')
  return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else ()


def in_pieces(
  q_BLHA: Array, k_BSGA: Array, v_BSGA: Array, reach: Reach, piece: int | None = None
) -> Array:
  """Returns the reference attention, computed for `piece` queries at a time.

  No more logits than those of one piece exist at any time, and none are kept.
  """
  segment_BL, until_BL, key_segment_BS = reach.spelled_out()
  b, l = segment_BL.shape
  piece = piece or max(1, MANY_LOGITS // k_BSGA.shape[1])
  count = -(-l // piece)
  dtype = k_BSGA.dtype
  # The gradients of keys and values accumulate over the pieces in fp32, whatever type
  # the pieces are computed in.
  k_BSGA = k_BSGA.astype(jnp.float32)
  v_BSGA = v_BSGA.astype(jnp.float32)

  def attend(part):
    q, segment, until = part
    piece_reach = Reach(segment, until, key_segment_BS)
    k = k_BSGA.astype(dtype)
    v = v_BSGA.astype(dtype)
    return attention_reference(q, k, v, piece_reach)

  def cut(x):
    padded = jnp.pad(x, [(0, 0), (0, count * piece - l)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(padded.reshape(b, count, piece, *x.shape[2:]), 1, 0)

  parts = (cut(q_BLHA), cut(segment_BL), cut(until_BL))
  y = jax.lax.map(jax.checkpoint(attend), parts)
  return jnp.moveaxis(y, 0, 1).reshape(b, count * piece, *q_BLHA.shape[2:])[:, :l]


def cudnn(q_BLHA: Array, k_BSGA: Array, v_BSGA: Array, reach: Reach) -> Array:
  """Returns cuDNN's flash attention: it keeps no logits, but one mask for all heads."""
  mask_BLS = mask_of(reach)
  return jax.nn.dot_product_attention(
    q_BLHA, k_BSGA, v_BSGA, mask=mask_BLS[:, None], implementation='cudnn'
  )


class SegmentBounds(NamedTuple):
  """The segments of rows as cuDNN takes them, -1 where a row has no more of them.

  Attributes:
    start_BM: first position of each segment.
    length_BM: number of its positions.
    fits: whether no row has more than M segments, a scalar.
  """

  start_BM: Array
  length_BM: Array
  fits: Array


def segment_bounds(segment_BL: Int[Array, 'B L'], most: int) -> SegmentBounds:
  """Returns where each of at most `most` segments of a row lies, padding included."""
  is_first_BL = jnp.diff(segment_BL, axis=1, prepend=-1) != 0
  number_BL1 = jnp.cumsum(is_first_BL, axis=1, dtype=jnp.int32)[..., None] - 1
  number_M = jnp.arange(most, dtype=jnp.int32)
  length_BM = (number_BL1 == number_M).sum(axis=1, dtype=jnp.int32)
  start_BM = (number_BL1 < number_M).sum(axis=1, dtype=jnp.int32)
  exists_BM = length_BM > 0
  return SegmentBounds(
    jnp.where(exists_BM, start_BM, -1),
    jnp.where(exists_BM, length_BM, -1),
    (number_BL1 < most).all(),
  )


def cudnn_segments(
  q_BLHA: Array, k_BLGA: Array, v_BLGA: Array, bounds: SegmentBounds
) -> Array:
  """Returns cuDNN's flash attention of causal rows, each segment by itself.

  There is no mask. The memory of its backward pass grows with the number of segments
  that a row may have: 0.5 GiB for each, for 8 rows of 4,096 positions and 16 heads of
  128.
  """
  # A start follows the last one; cuDNN fills it in.
  start_BM1 = jnp.pad(bounds.start_BM, ((0, 0), (0, 1)), constant_values=-1)
  return fused_attention_stablehlo.dot_product_attention(
    q_BLHA,
    k_BLGA,
    v_BLGA,
    q_seqlen=bounds.length_BM,
    kv_seqlen=bounds.length_BM,
    q_offsets=start_BM1,
    kv_offsets=start_BM1,
    scale=q_BLHA.shape[-1] ** -0.5,
    mask_type=fused_attention_stablehlo.MaskType.PADDING_CAUSAL,
  )


def _masked_rows(
  q_BLHA: Array, k_BLGA: Array, v_BLGA: Array, segment_BL: Array
) -> Array:
  """Returns the attention of causal rows, with a mask if it is not too large."""
  fits_mask = segment_BL.shape[1] ** 2 <= MAX_CUDNN_MASK
  attend = cudnn if fits_mask else in_pieces
  return attend(q_BLHA, k_BLGA, v_BLGA, Reach(segment_BL))


def _by_segments(
  use: Callable[..., Any], segment_BL: Array, q: Array, k: Array, v: Array
) -> Any:
  """Returns use(attend, q, k, v) with the attention that the number of segments allows."""
  bounds = segment_bounds(segment_BL, MAX_SEGMENTS)
  with_bounds = lambda q, k, v: cudnn_segments(q, k, v, bounds)
  with_mask = lambda q, k, v: _masked_rows(q, k, v, segment_BL)
  return jax.lax.cond(
    bounds.fits, partial(use, with_bounds), partial(use, with_mask), q, k, v
  )


@jax.custom_vjp
def cudnn_packed(
  q_BLHA: Array, k_BLGA: Array, v_BLGA: Array, segment_BL: Array
) -> Array:
  """Returns cuDNN's flash attention of causal rows.

  If a row has more than MAX_SEGMENTS segments, all rows are computed as if this kernel
  did not exist: with a mask, or in pieces.
  """
  use = lambda attend, q, k, v: attend(q, k, v)
  return _by_segments(use, segment_BL, q_BLHA, k_BLGA, v_BLGA)


def _cudnn_packed_fwd(q: Array, k: Array, v: Array, segment: Array) -> tuple[Any, Any]:
  return cudnn_packed(q, k, v, segment), (q, k, v, segment)


def _cudnn_packed_bwd(residuals: Any, dy: Array) -> tuple[Array, Array, Array, None]:
  """Computes the forward pass again.

  The gradient of the condition would otherwise keep what each of its branches needs.
  """
  q, k, v, segment_BL = residuals
  use = lambda attend, q, k, v: jax.vjp(attend, q, k, v)[1](dy)
  dq, dk, dv = _by_segments(use, segment_BL, q, k, v)
  return dq, dk, dv, None


cudnn_packed.defvjp(_cudnn_packed_fwd, _cudnn_packed_bwd)


class CausalTiles(splash_mask.CausalMask):
  """A causal mask for queries at arbitrary positions.

  Splash asks of every tile only whether any of it and whether all of it is visible: for
  a tile that is all or nothing, one element answers. With 131,072 positions this takes
  seconds instead of minutes.
  """

  def __init__(self, position_Q: np.ndarray):
    super().__init__((len(position_Q),) * 2)
    self.q_sequence = position_Q.astype(np.int32)

  def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
    rows, keys = index
    position = self.q_sequence[rows]
    first = position.min()
    if first >= keys.stop - 1 or position.max() < keys.start:
      return np.full((1, 1), first >= keys.start)
    return super().__getitem__(index)


def splash_kernel(
  position_NL: np.ndarray, heads: int, *, interpret: bool = False
) -> splash.SplashAttentionKernel:
  """Returns splash attention for causal rows whose queries are split over N devices.

  The kernel computes the mask as it goes and skips the tiles where nothing is visible.

  Args:
    position_NL: positions in the row of the queries that each device holds.
    interpret: run in plain XLA, for tests without a TPU.
  """
  n, l = position_NL.shape
  mask = CausalTiles(position_NL.reshape(-1))
  tile_q = tile(l, MAX_BLOCK)
  tile_kv = tile(n * l, MAX_BLOCK)
  sizes = splash.BlockSizes(
    block_q=tile_q,
    block_kv=tile_kv,
    block_kv_compute=tile_kv,
    block_q_dkv=tile_q,
    block_kv_dkv=tile_kv,
    block_kv_dkv_compute=tile_kv,
    block_q_dq=tile_q,
    block_kv_dq=tile_kv,
  )
  return splash.make_splash_mha(
    splash_mask.MultiHeadMask([mask] * heads),
    block_sizes=sizes,
    head_shards=1,
    q_seq_shards=n,
    residual_checkpoint_name=SAVED,
    interpret=interpret,
  )


def by_splash(
  q_BLHA: Array,
  k_BSGA: Array,
  v_BSGA: Array,
  reach: Reach,
  kernel: splash.SplashAttentionKernel,
) -> Array:
  """Returns the attention of rows that a `splash_kernel` computes.

  The kernel does not scale the logits and expects the heads before the positions; keys
  are not repeated for the queries that share them.
  """
  q_BHLA = _swapped(q_BLHA) * q_BLHA.shape[-1] ** -0.5
  key_segment_BS = reach.spelled_out().key_segment_BS
  assert key_segment_BS is not None
  segments = splash.SegmentIds(reach.segment_BL, key_segment_BS)
  y_BHLA: Any = jax.vmap(kernel)(q_BHLA, _swapped(k_BSGA), _swapped(v_BSGA), segments)
  return _swapped(y_BHLA)


def _swapped(x: Array) -> Array:
  """Returns an array with heads and positions swapped."""
  return jnp.swapaxes(x, 1, 2)
