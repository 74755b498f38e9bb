"""The ways to attend, and which of them fits: splash on TPU, cuDNN on GPU, XLA in pieces elsewhere, or all at once.

Each takes what `attention_reference` takes and gives what it gives, but for what a query gets that sees nothing: who
calls sets that to zero (`context.attend`).
"""

import enum
from typing import Any

import jax
from jax import Array
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_kernel as splash,
)
from jax.experimental.pallas.ops.tpu.splash_attention import (
  splash_attention_mask as splash_mask,
)
import jax.numpy as jnp
import numpy as np

from omni_jax.nn.reach import attention_reference, mask_of, Reach

LANES = 128  # splash's tiles are multiples of it
MAX_BLOCK = 512  # positions in a tile
MANY_LOGITS = (
  2**20
)  # of one head: above, XLA attends in pieces (4096 queries and keys: 16 pieces of 256)
MAX_CUDNN_MASK = 2**26  # cuDNN wants a mask of L×S for packed rows
SAVED = 'attention'  # name of the kernel's outputs, for a policy of jax.checkpoint that keeps them


class Kernel(enum.Enum):
  REFERENCE = 'reference'  # XLA, all logits at once
  PIECES = 'pieces'  # XLA, a few queries at a time
  SPLASH = 'splash'  # Pallas, TPU
  CUDNN = 'cudnn'  # GPU


def choose(
  device: Any,
  q: Array | jax.ShapeDtypeStruct,
  k: Array | jax.ShapeDtypeStruct,
  reach: Reach,
) -> Kernel:
  """The fastest kernel that takes these shapes on this kind of device, without L×S logits where these are many.

  It asks the device of the mesh, not jax's default one, so that a program that is compiled ahead of time for a TPU
  that is not there is the program that runs there.

  Args:
    device: one of those that will run it; None where only XLA will do.
    q, k: what one device holds, (B, L, H, A) and (B, S, G, A).
  """
  (_, l, _, width), s = q.shape, k.shape[1]
  if (
    device is not None
    and device.platform == 'tpu'
    and reach.is_causal_row
    and l % LANES == s % LANES == 0
  ):
    return Kernel.SPLASH
  if (
    device is not None
    and device.platform == 'gpu'
    and q.dtype in (jnp.bfloat16, jnp.float16)
    and _is_ampere(device)
    and width % 8 == l % 2 == s % 2 == 0
    and width <= 128
    and l * s <= MAX_CUDNN_MASK
  ):
    return Kernel.CUDNN
  return Kernel.PIECES if l * s > MANY_LOGITS else Kernel.REFERENCE


def _is_ampere(device: Any) -> bool:
  """Or later; not AMD's, whose capability is a name."""
  major, _, minor = str(device.compute_capability).partition('.')
  return major.isdigit() and minor.isdigit() and int(major) >= 8


def in_pieces(
  q_BLHA: Array, k_BSGA: Array, v_BSGA: Array, reach: Reach, piece: int | None = None
) -> Array:
  """The reference on `piece` queries after the other: at no time are there more logits, nor are they kept."""
  segment_BL, until_BL, key_segment_BS = reach.spelled_out()
  b, l = segment_BL.shape
  piece = piece or max(1, MANY_LOGITS // k_BSGA.shape[1])
  count = -(-l // piece)
  kind = k_BSGA.dtype
  # Gradients of keys and values add up over the pieces: in fp32, whatever they are computed in.
  k_BSGA, v_BSGA = k_BSGA.astype(jnp.float32), v_BSGA.astype(jnp.float32)

  def attend(part):
    q, segment, until = part
    return attention_reference(
      q, k_BSGA.astype(kind), v_BSGA.astype(kind), Reach(segment, until, key_segment_BS)
    )

  def cut(x):
    padded = jnp.pad(x, [(0, 0), (0, count * piece - l)] + [(0, 0)] * (x.ndim - 2))
    return jnp.moveaxis(padded.reshape(b, count, piece, *x.shape[2:]), 1, 0)

  y = jax.lax.map(jax.checkpoint(attend), (cut(q_BLHA), cut(segment_BL), cut(until_BL)))
  return jnp.moveaxis(y, 0, 1).reshape(b, count * piece, *q_BLHA.shape[2:])[:, :l]


def cudnn(q_BLHA: Array, k_BSGA: Array, v_BSGA: Array, reach: Reach) -> Array:
  """Flash attention of cuDNN: no logits are kept, but a mask is, one for all heads."""
  mask_BLS = mask_of(reach)
  return jax.nn.dot_product_attention(
    q_BLHA, k_BSGA, v_BSGA, mask=mask_BLS[:, None], implementation='cudnn'
  )


class CausalTiles(splash_mask.CausalMask):
  """Which keys each of the queries, of any numbers, may look at.

  Splash only asks of a tile whether any and whether all of it is seen, but of every tile: all or nothing is answered
  with one number. With 131,072 positions this takes seconds instead of minutes.
  """

  def __init__(self, position_Q: np.ndarray):
    super().__init__((len(position_Q),) * 2)
    self.q_sequence = position_Q.astype(np.int32)

  def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
    position, keys = self.q_sequence[index[0]], index[1]
    if position.min() >= keys.stop - 1 or position.max() < keys.start:
      return np.full((1, 1), position.min() >= keys.start)
    return super().__getitem__(index)


def splash_kernel(
  position_NL: np.ndarray, heads: int, *, interpret: bool = False
) -> splash.SplashAttentionKernel:
  """Splash attention for causal rows, whose queries are split over N devices.

  It computes the mask as it goes, and leaves out the tiles in which nothing may be seen.

  Args:
    position_NL: numbers in the row of the queries that each device holds.
    interpret: run in plain XLA, for tests without a TPU.
  """
  n, l = position_NL.shape
  mask = CausalTiles(position_NL.reshape(-1))
  tile_q, tile_kv = (
    next(t for t in range(MAX_BLOCK, 0, -LANES) if size % t == 0) for size in (l, n * l)
  )
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
  """Rows by `splash_kernel`, which does not scale and wants heads first; keys are not repeated for their queries."""
  first = lambda x: jnp.swapaxes(x, 1, 2)
  q_BHLA = first(q_BLHA) * q_BLHA.shape[-1] ** -0.5
  segments = splash.SegmentIds(reach.segment_BL, reach.spelled_out().key_segment_BS)
  return first(jax.vmap(kernel)(q_BHLA, first(k_BSGA), first(v_BSGA), segments))
