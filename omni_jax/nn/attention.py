"""Grouped-query attention with QK-norm and rotary positions, with or without a KV cache."""

from typing import NamedTuple

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.nn.context import attend
from omni_jax.nn.layers import Linear, RMSNorm
from omni_jax.nn.reach import Reach
from omni_jax.nn.rope import rotate


class KVCache(NamedTuple):
  """Keys and values of one layer (or, stacked, of all): rows B, slots S."""

  key_BSGA: Array
  value_BSGA: Array


class Attention(nnx.Module):
  """GQA (Ainslie et al. 2023) with RMS-normalised queries and keys (Henry et al. 2020)."""

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
    """Attends to the row itself, or, with a cache, to the cache after writing x into its slots.

    A slot outside the cache is not written: that is how padding is kept out. Where the reach is of the row's own
    positions x is the beginning of its row: it is written, too, but attends to itself, as in training.

    Args:
      mesh: as in `context.attend`.
    """
    heads, kv_heads, head_dim = self.shape
    b, l, _ = x_BLD.shape
    q = self.q_norm(self.q(x_BLD).reshape(b, l, heads, head_dim))
    # Key and value of a head lie side by side, so that splitting the columns over devices does not part them.
    k, v = jnp.moveaxis(self.kv(x_BLD).reshape(b, l, kv_heads, 2, head_dim), 3, 0)
    k = self.k_norm(k)
    if angle_BLa is not None:
      q, k = rotate(q, angle_BLa), rotate(k, angle_BLa)
    if cache is not None:
      row = jnp.arange(b)[:, None]
      write = lambda old, new: sharding.shard_items(
        old.at[row, slot_BL].set(new.astype(old.dtype), mode='drop')
      )
      cache = KVCache(write(cache.key_BSGA, k), write(cache.value_BSGA, v))
      k, v = (k, v) if reach.key_segment_BS is None else cache
    y = attend(q, k.astype(q.dtype), v.astype(q.dtype), reach, mesh)
    return self.out(y.reshape(b, l, heads * head_dim)), cache
