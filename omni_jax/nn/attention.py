"""Grouped-query attention with QK-norm, rotary positions and an optional KV cache."""

from typing import NamedTuple

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.nn.context_parallel import attend
from omni_jax.nn.layers import Linear, RMSNorm
from omni_jax.nn.reach import Reach
from omni_jax.nn.rope import rotate


class KVCache(NamedTuple):
  """Keys and values of one layer (or, stacked, of all layers): rows B, slots S."""

  key_BSGA: Array
  value_BSGA: Array


class Attention(nnx.Module):
  """GQA (Ainslie et al. 2023) with RMS-normalised queries and keys.

  The normalisation is that of Henry et al. (2020).
  """

  def __init__(
    self, width: int, heads: int, kv_heads: int, head_dim: int, *, rngs: nnx.Rngs
  ):
    self.shape = (heads, kv_heads, head_dim)
    self.q = Linear(width, heads * head_dim, ('embed', 'heads'), rngs=rngs)
    self.kv = Linear(width, 2 * kv_heads * head_dim, ('embed', 'heads'), rngs=rngs)
    self.out = Linear(heads * head_dim, width, ('heads', 'embed'), rngs=rngs)
    self.q_norm = RMSNorm(head_dim, rngs=rngs)
    self.k_norm = RMSNorm(head_dim, rngs=rngs)

  def __call__(
    self,
    x_BLD: Float[Array, 'B L D'],
    reach: Reach,
    angle_BLa: Float[Array, 'B L a'] | None = None,
    mesh: Mesh | None = None,
    cache: KVCache | None = None,
    slot_BL: Int[Array, 'B L'] | None = None,
  ) -> tuple[Float[Array, 'B L D'], KVCache | None]:
    """Attends to the row itself or, with a cache, to the cache after writing x into it.

    If the reach covers only the row's own positions, x is the beginning of its row: it
    is still written to the cache but attends to itself, as in training.

    Args:
      mesh: as in `context_parallel.attend`.
      slot_BL: cache slot of each position. A slot outside the cache is not written,
        which keeps padding out.
    """
    heads, kv_heads, head_dim = self.shape
    b, l, _ = x_BLD.shape
    q = self.q_norm(self.q(x_BLD).reshape(b, l, heads, head_dim))
    # The key and value of a head are adjacent, so that splitting the columns over
    # devices does not separate them.
    kv = self.kv(x_BLD).reshape(b, l, kv_heads, 2, head_dim)
    k, v = jnp.moveaxis(kv, 3, 0)
    k = self.k_norm(k)
    if angle_BLa is not None:
      q = rotate(q, angle_BLa)
      k = rotate(k, angle_BLa)
    if cache is not None:
      assert slot_BL is not None
      row_B1 = jnp.arange(b)[:, None]
      cache = KVCache(
        _written(cache.key_BSGA, k, row_B1, slot_BL),
        _written(cache.value_BSGA, v, row_B1, slot_BL),
      )
      if reach.key_segment_BS is not None:
        k, v = cache
    y = attend(q, k.astype(q.dtype), v.astype(q.dtype), reach, mesh)
    return self.out(y.reshape(b, l, heads * head_dim)), cache


def _written(
  cached_BSGA: Array, new_BLGA: Array, row_B1: Array, slot_BL: Array
) -> Array:
  """Returns cached keys or values with the new ones written into their slots."""
  new_BLGA = new_BLGA.astype(cached_BSGA.dtype)
  written_BSGA = cached_BSGA.at[row_B1, slot_BL].set(new_BLGA, mode='drop')
  return sharding.shard_cache(written_BSGA)
