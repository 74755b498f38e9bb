"""The DiT head: denoises image patches, each conditioned on its query's decoder state.

Blocks are adaLN-Zero (Peebles & Xie 2023); attention is full inside an image. The time,
the mean condition and the modulation that follows from both are computed once per image
and looked up for its patches.
"""

import dataclasses

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, UInt8

from omni_jax import sharding
from omni_jax.modalities.head_loss import UnitLoss
from omni_jax.modalities.image.embed import as_bytes, normalised, Places
from omni_jax.modalities.image.flow import (
  flow_loss,
  Noise,
  noised,
  sample,
  sample_noise,
  start_noise,
  time_features,
  velocity,
)
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.nn.attention import Attention
from omni_jax.nn.blocks import scan_blocks
from omni_jax.nn.decoder import POLICIES, Remat
from omni_jax.nn.layers import gather_rows, Linear, normal, rms_norm, SwiGLU, zeros
from omni_jax.nn.pool import Pool
from omni_jax.types import Stream


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Sizes and training of the image head.

  Attributes:
    width: width of the DiT.
    layers: number of blocks.
    heads: attention heads of a block.
    hidden: hidden width of a block's SwiGLU.
    noises: number of noise samples per image and step; the decoder runs once for all of
      them.
    null: share of conditions that the null condition replaces, for classifier-free
      guidance.
    shift: s of t -> s·t / (1 + (s - 1)·t); above 1 it moves t toward data (BAGEL, with
      the opposite convention of t, shifts toward noise).
    remat: what the backward pass recomputes of each block: Remat.NONE, DOTS or FULL.
      Images of many sizes have attention logits over twice the largest image and a
      modulation for each patch, which DOTS and FULL do not keep.
  """

  width: int
  layers: int
  heads: int
  hidden: int
  noises: int
  null: float
  shift: float
  remat: Remat | str

  def __post_init__(self):
    object.__setattr__(self, 'remat', Remat(self.remat))
    choices = (Remat.NONE, Remat.DOTS, Remat.FULL)
    if self.remat not in choices:
      raise ValueError(f'remat={self.remat} must be one of {", ".join(choices)}')


class DiTBlock(nnx.Module):
  """Attention and SwiGLU, each modulated and gated by the condition of the image."""

  def __init__(self, c: DiTConfig, *, rngs: nnx.Rngs):
    self.attention = Attention(c.width, c.heads, c.heads, c.width // c.heads, rngs=rngs)
    self.mlp = SwiGLU(c.width, c.hidden, rngs=rngs)
    self.modulation = Linear(
      c.width, 6 * c.width, ('embed', 'mlp'), rngs=rngs, bias=True, init=zeros
    )

  def __call__(
    self, x_UPW: Float[Array, 'U P W'], condition_BNW: Array, pool: Pool
  ) -> Float[Array, 'U P W']:
    modulation = pool.look_up(self.modulation(condition_BNW))
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(modulation, 6, axis=-1)
    modulated_UPW = rms_norm(x_UPW) * (1 + scale1) + shift1
    y_UPW, _ = self.attention(modulated_UPW, pool.reach())
    x_UPW = x_UPW + gate1 * y_UPW
    modulated_UPW = rms_norm(x_UPW) * (1 + scale2) + shift2
    y_UPW = self.mlp(modulated_UPW)
    return sharding.shard_items(x_UPW + gate2 * y_UPW)


class DiTHead(nnx.Module):
  """The velocity network of images, with its training loss and its sampler.

  Args:
    c: config of the head.
    image: sizes of images.
    block: number of patches in a block of a pool; attention stays within a block.
    width: width of the decoder.
  """

  def __init__(
    self, c: DiTConfig, image: ImageConfig, block: int, width: int, *, rngs: nnx.Rngs
  ):
    self.config = c
    self.image = image
    self.block = block
    self.patch_in = Linear(image.values, c.width, (None, 'embed'), rngs=rngs)
    self.place = Places(image.grid, c.width, rngs=rngs)
    self.condition_in = Linear(width, c.width, ('embed', 'mlp'), rngs=rngs)
    self.null = sharding.param(
      rngs, (width,), (None,), normal(1.0), role=sharding.Role.TABLE
    )
    self.time = SwiGLU(c.width, c.width, rngs=rngs)
    self.blocks = nnx.List([DiTBlock(c, rngs=rngs) for _ in range(c.layers)])
    self.last = Linear(
      c.width, 2 * c.width, ('embed', 'mlp'), rngs=rngs, bias=True, init=zeros
    )
    self.out = Linear(c.width, image.values, ('embed', None), rngs=rngs, init=zeros)

  def velocity(
    self,
    x_BMY: Float[Array, 'B M Y'],
    t_BN: Float[Array, 'B N'],
    state_BMD: Float[Array, 'B M D'],
    place_BM3: Int[Array, 'B M 3'],
    pool: Pool,
  ) -> Float[Array, 'B M Y']:
    """Returns the predicted velocity, data - noise, of rows of patches.

    Args:
      x_BMY: noised patches.
      t_BN: time of each image of a row.
      state_BMD: decoder state of each patch's query.
      place_BM3: place of each patch in its image.
      pool: the images that the patches belong to.
    """
    dtype = state_BMD.dtype
    rows = len(state_BMD)
    state_UPD = sharding.shard_items(pool.blocks(state_BMD))
    condition_UPW = self.condition_in(state_UPD)
    pooled_BNW = pool.mean(condition_UPW, rows)
    time_BNW = self.time(time_features(t_BN, self.config.width).astype(dtype))
    condition_BNW = jax.nn.silu(time_BNW + pooled_BNW)
    x_UPW = self.patch_in(pool.blocks(x_BMY).astype(dtype)) + condition_UPW
    x_UPW = x_UPW + self.place(pool.blocks(place_BM3), dtype)

    def apply(block: DiTBlock, x_UPW: Array, _: None) -> tuple[Array, None]:
      return block(x_UPW, condition_BNW, pool), None

    policy = POLICIES.get(Remat(self.config.remat))
    x_UPW, _ = scan_blocks(apply, self.blocks, x_UPW, dtype=dtype, policy=policy)
    shift, scale = jnp.split(pool.look_up(self.last(condition_BNW)), 2, axis=-1)
    y_UPY = self.out(rms_norm(x_UPW) * (1 + scale) + shift)
    return pool.rows(y_UPY, rows).astype(jnp.float32)

  def losses(
    self, hidden_BLD: Float[Array, 'B L D'], stream: Stream, key: Array
  ) -> UnitLoss:
    """Returns the squared velocity error of each patch (see `flow_loss`).

    Args:
      key: random key of the step.
    """
    c = self.config
    noise = sample_noise(
      stream, key, samples=c.noises, values=self.image.values, shift=c.shift
    )
    return self.losses_with_noise(noise, hidden_BLD, stream)

  def losses_with_noise(
    self, noise: Noise, hidden_BLD: Float[Array, 'B L D'], stream: Stream
  ) -> UnitLoss:
    """Returns the losses with given noise.

    Where the chance is below `null`, the condition is replaced by the null condition.
    """
    b, k, m, values = noise.noise_BKMY.shape
    items = stream.form_BN3.shape[1]
    data_BKMY = normalised(stream.value_BM, self.image)[:, None]
    item_BKM = jnp.broadcast_to(stream.item_BM[:, None], (b, k, m))
    index_BKM = jnp.maximum(item_BKM - 1, 0)
    t_BKM = jnp.take_along_axis(noise.t_BKN, index_BKM, axis=2)
    x_BKMY = noised(data_BKMY, noise.noise_BKMY, t_BKM[..., None])
    target_BKMY = velocity(data_BKMY, noise.noise_BKMY)

    state_BMD = gather_rows(hidden_BLD, stream.write_at_BM)
    dropped_BKN = noise.chance_BKN < self.config.null
    dropped_BKM = jnp.take_along_axis(dropped_BKN, index_BKM, axis=2)
    null_D = self.null[...].astype(state_BMD.dtype)
    state_BKMD = jnp.where(dropped_BKM[..., None], null_D, state_BMD[:, None])

    def flat(value_BK: Array) -> Array:
      return value_BK.reshape(b * k, *value_BK.shape[2:])

    place_BKM3 = jnp.broadcast_to(stream.place_BM3[:, None], (b, k, m, 3))
    pool = Pool.of(flat(item_BKM), items, block=self.block, longest=self.image.patches)
    velocity_QMY = self.velocity(
      flat(x_BKMY), flat(noise.t_BKN), flat(state_BKMD), flat(place_BKM3), pool
    )
    return flow_loss(velocity_QMY.reshape(b, k, m, values) - target_BKMY, stream)

  def sample(
    self,
    state_UMD: Float[Array, 'U M D'],
    place_UM3: Int[Array, 'U M 3'],
    valid_UM: Bool[Array, 'U M'],
    key_U: Array,
    *,
    guidance_U: Float[Array, 'U'],
    steps: int,
  ) -> UInt8[Array, 'U M Y']:
    """Returns a drawn image in each row, as bytes.

    Args:
      state_UMD: decoder state of each patch's query.
      place_UM3: place of each patch in its image.
      valid_UM: whether the image has this patch.
      key_U: random key of each image.
      guidance_U: 1 follows the condition; above 1 extrapolates from the null condition
        beyond it.
      steps: number of Euler steps.
    """
    m = state_UMD.shape[1]
    null = jnp.broadcast_to(self.null[...].astype(state_UMD.dtype), state_UMD.shape)

    def twice(x: Array) -> Array:
      return jnp.concatenate([x, x])

    state = jnp.concatenate([state_UMD, null])
    item = twice(valid_UM.astype(jnp.int32))
    pool = Pool.of(item, 1, block=m, longest=m)
    place = twice(place_UM3)

    def guided(x_UMY: Array, t: Array) -> Array:
      times = jnp.full((len(state), 1), t)
      both = self.velocity(twice(x_UMY), times, state, place, pool)
      conditional, unconditional = jnp.split(both, 2)
      guidance_U11 = guidance_U[:, None, None]
      return unconditional + guidance_U11 * (conditional - unconditional)

    noise_UMY = start_noise(key_U, place_UM3, self.image.values)
    return as_bytes(sample(guided, noise_UMY, steps=steps), self.image)
