"""The causal decoder: one block, scanned over depth."""

import dataclasses
import enum
from typing import NamedTuple

from flax import nnx
import jax
from jax import Array
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.nn import attention_kernels, moe_router
from omni_jax.nn.attention import Attention, CachePlace, KVCache
from omni_jax.nn.blocks import cast_matrices
from omni_jax.nn.expert_parallel import Dispatch, Exchange
from omni_jax.nn.layers import RMSNorm
from omni_jax.nn.moe import MoE, MoEConfig
from omni_jax.nn.reach import packed_rows, Reach
from omni_jax.nn.rope import mrope_angles


class RoutedBy(enum.StrEnum):
  """Ways to route a token."""

  TOKEN = 'token'  # one router for all tokens
  MODALITY = 'modality'  # one router per modality; the experts are shared


class Remat(enum.StrEnum):
  """Ways to save memory: the backward pass recomputes what is not kept."""

  NONE = 'none'  # keep everything
  DOTS = 'dots'  # keep the results of matmuls
  # Keep the input of each block and the output of its attention kernel, if it has one.
  ATTENTION = 'attention'
  FULL = 'full'  # keep only the input of each block
  OFFLOAD = 'offload'  # keep the input of each block in the host's memory


INPUT = 'block_input'  # name of what OFFLOAD moves to the host
POLICIES = {
  Remat.DOTS: jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
  Remat.ATTENTION: jax.checkpoint_policies.save_only_these_names(
    attention_kernels.SAVED
  ),
  Remat.FULL: jax.checkpoint_policies.nothing_saveable,
  Remat.OFFLOAD: jax.checkpoint_policies.save_and_offload_only_these_names(
    names_which_can_be_saved=[],
    names_which_can_be_offloaded=[INPUT],
    offload_src='device',
    offload_dst='pinned_host',
  ),
}


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
  """Sizes of the decoder.

  Attributes:
    width: width of the state of a position.
    layers: number of blocks.
    heads, kv_heads: number of query heads, and of key/value heads.
    head_dim: width of a head.
    experts: number of routed experts.
    top_k: number of experts that a token visits.
    expert_hidden: hidden width of a routed expert.
    shared_hidden: hidden width of the shared expert; 0 for none.
    routing: see RoutedBy.
    exchange, capacity, block: how the experts are computed, see
      expert_parallel.Dispatch.
    theta: base of the rotary frequencies.
    remat: see Remat.
    unroll: number of layers per iteration of the scan.
    modalities: largest number of modalities, padding included; the model sets it.

  Raises:
    ValueError: if the heads are not a multiple of the key/value heads, top_k exceeds
      the experts, or an enum has no such value.
  """

  width: int
  layers: int
  heads: int
  kv_heads: int
  head_dim: int
  experts: int
  top_k: int
  expert_hidden: int
  shared_hidden: int
  routing: RoutedBy | str
  exchange: Exchange | str
  capacity: float
  block: int
  theta: float
  remat: Remat | str
  unroll: int
  modalities: int = 4

  def __post_init__(self):
    object.__setattr__(self, 'remat', Remat(self.remat))
    object.__setattr__(self, 'routing', RoutedBy(self.routing))
    object.__setattr__(self, 'exchange', Exchange(self.exchange))
    if self.heads % self.kv_heads:
      raise ValueError(
        f'heads={self.heads} is not a multiple of kv_heads={self.kv_heads}'
      )
    if self.top_k > self.experts:
      raise ValueError(f'top_k={self.top_k} exceeds experts={self.experts}')


class Block(nnx.Module):
  """Pre-norm attention and mixture of experts."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    c = config
    self.attention_norm = RMSNorm(c.width, rngs=rngs)
    self.moe_norm = RMSNorm(c.width, rngs=rngs)
    self.attention = Attention(c.width, c.heads, c.kv_heads, c.head_dim, rngs=rngs)
    moe_config = MoEConfig(
      width=c.width,
      hidden=c.expert_hidden,
      experts=c.experts,
      top_k=c.top_k,
      shared=c.shared_hidden,
      dispatch=Dispatch(Exchange(c.exchange), c.capacity, c.block),
      modalities=c.modalities,
      routers=c.modalities if c.routing == RoutedBy.MODALITY else 1,
    )
    self.moe = MoE(moe_config, rngs=rngs)

  def __call__(
    self,
    x_BLD: Array,
    reach: Reach,
    angle_BLa: Array,
    modality_BL: Array,
    bias_E: Array,
    mesh: Mesh,
    place: CachePlace | None = None,
  ) -> tuple[Array, moe_router.RouterStats, KVCache | None]:
    """Returns the new hidden states, the router's statistics and the updated cache."""
    y_BLD, cache = self.attention(
      self.attention_norm(x_BLD), reach, angle_BLa, mesh, place
    )
    x_BLD = sharding.shard(x_BLD + y_BLD, 'batch', 'length', 'act_embed')
    y_BLD, stats = self.moe(self.moe_norm(x_BLD), modality_BL, bias_E, mesh)
    x_BLD = sharding.shard(x_BLD + y_BLD, 'batch', 'length', 'act_embed')
    return x_BLD, stats, cache


class DecoderOutput(NamedTuple):
  """The result of the decoder.

  Attributes:
    hidden_BLD: normalised hidden states of the last layer.
    stats: router statistics; every leaf has a leading axis of layers.
    cache: the updated cache, None without one; likewise stacked over layers.
  """

  hidden_BLD: Array
  stats: moe_router.RouterStats
  cache: KVCache | None


class Decoder(nnx.Module):
  """`layers` equal blocks whose weights are stacked on a leading axis."""

  def __init__(self, config: DecoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    layer_rngs = _split(rngs, config.layers)
    self.blocks = nnx.vmap(lambda rngs: Block(config, rngs=rngs))(layer_rngs)
    self.norm = RMSNorm(config.width, rngs=rngs)

  def __call__(
    self,
    x_BLD: Float[Array, 'B L D'],
    segment_BL: Int[Array, 'B L'],
    modality_BL: Int[Array, 'B L'],
    position_BL3: Float[Array, 'B L 3'],
    bias_IE: Float[Array, 'I E'],
    mesh: Mesh,
  ) -> DecoderOutput:
    """Returns the hidden states of whole packed rows, as in training."""
    return self._scan(
      x_BLD, packed_rows(segment_BL), modality_BL, position_BL3, bias_IE, mesh
    )

  def extend(
    self,
    x_BLD: Float[Array, 'B L D'],
    slot_BL: Int[Array, 'B L'],
    modality_BL: Int[Array, 'B L'],
    position_BL3: Float[Array, 'B L 3'],
    bias_IE: Float[Array, 'I E'],
    mesh: Mesh,
    cache: KVCache,
    reach: Reach,
  ) -> DecoderOutput:
    """Returns the hidden states of the next L positions of each row, using a cache.

    Args:
      slot_BL: cache slot of each position; a slot past the end marks padding.
      reach: `cached`, or `packed_rows` if the cache is empty: then the positions see
        only each other, and a kernel for whole rows can run.
    """
    return self._scan(
      x_BLD, reach, modality_BL, position_BL3, bias_IE, mesh, cache, slot_BL
    )

  def _scan(
    self,
    x_BLD: Array,
    reach: Reach,
    modality_BL: Array,
    position_BL3: Array,
    bias_IE: Array,
    mesh: Mesh,
    cache: KVCache | None = None,
    slot_BL: Array | None = None,
  ) -> DecoderOutput:
    c = self.config
    angle_BLa = mrope_angles(position_BL3, c.head_dim, c.theta)
    graph, blocks = nnx.split(self.blocks)
    blocks = cast_matrices(blocks, x_BLD.dtype)

    def body(carry, layer):
      x_BLD, cache = carry
      weights, bias_E, number = layer
      x_BLD = checkpoint_name(x_BLD, INPUT)
      block = nnx.merge(graph, weights)
      place = None
      if cache is not None and slot_BL is not None:
        place = CachePlace(cache, number, slot_BL)
      x_BLD, stats, cache = block(
        x_BLD, reach, angle_BLa, modality_BL, bias_E, mesh, place
      )
      return (x_BLD, cache), stats

    if c.remat in POLICIES:
      # A scan prevents common-subexpression elimination by itself.
      body = jax.checkpoint(body, policy=POLICIES[Remat(c.remat)], prevent_cse=False)
    numbers = None if cache is None else jnp.arange(c.layers)
    layers = (blocks, bias_IE, numbers)
    start = (x_BLD, cache)
    (x_BLD, cache), stats = jax.lax.scan(body, start, layers, unroll=c.unroll)
    return DecoderOutput(self.norm(x_BLD), stats, cache)

  def init_cache(
    self, rows: int, slots: int, dtype: jax.typing.DTypeLike = jnp.float32
  ) -> KVCache:
    """Returns an empty cache of all layers: keys and values of (I, B, S, G, A)."""
    c = self.config
    shape = (c.layers, rows, slots, c.kv_heads, c.head_dim)
    return KVCache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype))


def _split(rngs: nnx.Rngs, count: int) -> nnx.Rngs:
  """Returns `count` streams of random numbers, stacked on a leading axis."""
  if hasattr(rngs, 'split'):
    return rngs.split(count)
  return rngs.fork(split=count)  # older releases of Flax
