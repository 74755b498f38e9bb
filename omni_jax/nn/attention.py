"""Grouped-query attention with QK-norm, rotary positions and an optional KV cache."""

from typing import NamedTuple

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float

from omni_jax import sharding
from omni_jax.nn.context_parallel import attend
from omni_jax.nn.layers import Linear, RMSNorm
from omni_jax.nn.reach import Reach
from omni_jax.nn.rope import rotate


class KVCache(NamedTuple):
  """Keys and values of all layers I: rows B, slots S."""

  key_IBSGA: Array
  value_IBSGA: Array


class CachePlace(NamedTuple):
  """The place of new positions in the cache.

  The cache of all layers is passed along, so that a layer writes its few positions in
  place; a layer of its own would be copied out and back.

  Attributes:
    cache: keys and values of all layers.
    layer: number of the layer, a scalar.
    slot_BL: slot of each position. A slot outside the cache is not written, which keeps
      padding out.
  """

  cache: KVCache
  layer: Array
  slot_BL: Array

  def written(self, k_BLGA: Array, v_BLGA: Array) -> KVCache:
    """Returns the cache with the keys and values of the new positions."""
    row_B1 = jnp.arange(len(self.slot_BL))[:, None]

    def write(cached_IBSGA: Array, new_BLGA: Array) -> Array:
      new_BLGA = new_BLGA.astype(cached_IBSGA.dtype)
      target = cached_IBSGA.at[self.layer, row_B1, self.slot_BL]
      return sharding.shard_cache(target.set(new_BLGA, mode='drop'))

    key_IBSGA, value_IBSGA = self.cache
    return KVCache(write(key_IBSGA, k_BLGA), write(value_IBSGA, v_BLGA))


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
    place: CachePlace | None = None,
  ) -> tuple[Float[Array, 'B L D'], KVCache | None]:
    """Attends to the row itself or, with a cache, to the cache after writing x into it.

    If the reach covers only the row's own positions, x is the beginning of its row: it
    is still written to the cache but attends to itself, as in training.

    Args:
      mesh: as in `context_parallel.attend`.
      place: where the positions are cached; None without a cache.
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
    cache = None
    if place is not None:
      cache = place.written(k, v)
      if reach.key_segment_BS is not None:
        k = cache.key_IBSGA[place.layer]
        v = cache.value_IBSGA[place.layer]
    y = attend(q, k.astype(q.dtype), v.astype(q.dtype), reach, mesh)
    return self.out(y.reshape(b, l, heads * head_dim)), cache
