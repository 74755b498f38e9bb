"""The DiT head: denoises an image's patches, each conditioned on the decoder state of its query.

Blocks are adaLN-Zero (Peebles & Xie 2023), attention is full inside the image.
"""

from collections.abc import Callable
import dataclasses
import enum
from typing import Any

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float

from omni_jax import sharding
from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.modalities.image.embed import unpatchify
from omni_jax.modalities.image.flow import (
  flow_loss,
  Noised,
  sample,
  start_noise,
  time_features,
)
from omni_jax.nn.attention import Attention
from omni_jax.nn.layers import gather_rows, Linear, normal, rms_norm, SwiGLU, zeros
from omni_jax.nn.reach import whole
from omni_jax.sharding import Role
from omni_jax.types import ImageConfig


class Denoiser(enum.StrEnum):
  """What turns noise into an image."""

  DIT = 'dit'  # the head; the decoder runs once, over learned queries
  DECODER = (
    'decoder'  # the decoder itself sees the noise (`noise_in_decoder.py`): a baseline
  )


@dataclasses.dataclass(frozen=True)
class DiTConfig:
  """Sizes and training of the image head.

  Attributes:
    width, layers, heads, hidden: of the DiT.
    noises: noise samples per image and step; the decoder runs once for all of them.
    null: share of conditions replaced by the null one, for classifier-free guidance.
    shift: s of t -> s·t / (1 + (s - 1)·t); above 1 moves t toward data (BAGEL shifts toward noise in its convention).
    denoiser: see Denoiser; with 'decoder' there are no blocks, one noise sample a step and no guidance.
  """

  width: int = 128
  layers: int = 3
  heads: int = 4
  hidden: int = 256
  noises: int = 2
  null: float = 0.1
  shift: float = 1.0
  denoiser: Denoiser | str = Denoiser.DIT

  def __post_init__(self):
    object.__setattr__(self, 'denoiser', Denoiser(self.denoiser))
    if self.denoiser == Denoiser.DECODER and self.noises != 1:
      raise ValueError(
        f'noises={self.noises}: a decoder that sees the noise sees one sample of it, set noises=1'
      )


class DiTBlock(nnx.Module):
  def __init__(self, c: DiTConfig, *, rngs: nnx.Rngs):
    self.attention = Attention(c.width, c.heads, c.heads, c.width // c.heads, rngs=rngs)
    self.mlp = SwiGLU(c.width, c.hidden, rngs=rngs)
    self.modulation = Linear(
      c.width, 6 * c.width, ('embed', 'mlp'), rngs=rngs, bias=True, init=zeros
    )

  def __call__(self, x_UPW, condition_UW, reach):
    shift1, scale1, gate1, shift2, scale2, gate2 = jnp.split(
      self.modulation(condition_UW)[:, None], 6, axis=-1
    )
    x_UPW = (
      x_UPW + gate1 * self.attention(rms_norm(x_UPW) * (1 + scale1) + shift1, reach)[0]
    )
    return sharding.shard_items(
      x_UPW + gate2 * self.mlp(rms_norm(x_UPW) * (1 + scale2) + shift2)
    )


class DiTHead(nnx.Module):
  """`velocity(x, t, condition)`; loss and sampler around it."""

  def __init__(self, c: DiTConfig, image: ImageConfig, width: int, *, rngs: nnx.Rngs):
    self.config, self.image, self.model_width = c, image, width
    self.patch_in = Linear(image.values, c.width, (None, 'embed'), rngs=rngs)
    self.place = sharding.param(
      rngs, (image.patches, c.width), (None, 'embed'), normal(1.0), Role.TABLE
    )
    self.condition_in = Linear(width, c.width, ('embed', 'mlp'), rngs=rngs)
    self.null = sharding.param(rngs, (width,), (None,), normal(1.0), Role.TABLE)
    self.time = SwiGLU(c.width, c.width, rngs=rngs)
    self.blocks = nnx.List([DiTBlock(c, rngs=rngs) for _ in range(c.layers)])
    self.last = Linear(
      c.width, 2 * c.width, ('embed', 'mlp'), rngs=rngs, bias=True, init=zeros
    )
    self.out = Linear(c.width, image.values, ('embed', None), rngs=rngs, init=zeros)

  def velocity(
    self,
    x_UPY: Float[Array, 'U P Y'],
    t_U: Float[Array, 'U'],
    state_UPD: Float[Array, 'U P D'],
    valid_UP: Bool[Array, 'U P'],
  ) -> Float[Array, 'U P Y']:
    """Predicted data - noise."""
    dtype = state_UPD.dtype
    state_UPD = sharding.shard_items(state_UPD)
    condition_UPW = self.condition_in(state_UPD)
    n = jnp.maximum(valid_UP.sum(axis=1, keepdims=True), 1).astype(dtype)
    pooled_UW = jnp.where(valid_UP[..., None], condition_UPW, 0).sum(axis=1) / n
    condition_UW = jax.nn.silu(
      self.time(time_features(t_U, self.config.width).astype(dtype)) + pooled_UW
    )
    x_UPW = (
      self.patch_in(x_UPY.astype(dtype)) + self.place[...].astype(dtype) + condition_UPW
    )
    reach = whole(valid_UP)
    for block in self.blocks:
      x_UPW = block(x_UPW, condition_UW, reach)
    shift, scale = jnp.split(self.last(condition_UW)[:, None], 2, axis=-1)
    return self.out(rms_norm(x_UPW) * (1 + scale) + shift).astype(jnp.float32)

  def loss(
    self, hidden_BLD: Float[Array, 'B L D'], noised: Noised, draw_at_BNP: Array
  ) -> HeadLoss:
    """Squared velocity error (`flow_loss`); a share of the conditions is replaced by the null one."""
    b, n, p = draw_at_BNP.shape
    state_UPD = gather_rows(hidden_BLD, draw_at_BNP.reshape(b, -1)).reshape(
      b * n, p, hidden_BLD.shape[-1]
    )
    valid_UP = (draw_at_BNP >= 0).reshape(b * n, p)
    state, valid = (
      jnp.repeat(x, self.config.noises, axis=0) for x in (state_UPD, valid_UP)
    )
    null_U = noised.chance_BNK.reshape(-1) < self.config.null
    state = jnp.where(null_U[:, None, None], self.null[...].astype(state.dtype), state)
    x_BNKPY = noised.x_BNKPY
    made = self.velocity(
      x_BNKPY.reshape(-1, *x_BNKPY.shape[3:]), noised.t_BNK.reshape(-1), state, valid
    )
    return flow_loss(
      made.reshape(x_BNKPY.shape) - noised.velocity_BNKPY, draw_at_BNP >= 0
    )

  def sample(
    self,
    state_UPD: Float[Array, 'U P D'],
    valid_UP: Bool[Array, 'U P'],
    key_U: Array,
    *,
    guidance_U: Float[Array, 'U'],
    steps: int,
  ) -> Float[Array, 'U h w c']:
    """Draws images in [0, 1]; guidance 1 follows the condition, above 1 overshoots it away from the null one."""
    null = jnp.broadcast_to(self.null[...].astype(state_UPD.dtype), state_UPD.shape)
    both, valid = (
      jnp.concatenate([state_UPD, null]),
      jnp.concatenate([valid_UP, valid_UP]),
    )

    def guided(x, t):
      with_c, without_c = jnp.split(
        self.velocity(jnp.concatenate([x, x]), jnp.full(len(both), t), both, valid), 2
      )
      return without_c + guidance_U[:, None, None] * (with_c - without_c)

    return unpatchify(
      sample(guided, start_noise(key_U, self.image), steps=steps), self.image
    )

  def draw(
    self,
    run: Callable[[Array], tuple[Array, Any]],
    query_BPD: Float[Array, 'B P D'],
    valid_BP: Bool[Array, 'B P'],
    key_B: Array,
    *,
    guidance_B: Array,
    steps: int,
  ) -> tuple[Float[Array, 'B h w c'], Any]:
    """Draws images in [0, 1] behind what the decoder has read.

    Args:
      run: embeddings of the query positions -> (decoder states, what follows); starts from the same cache every time.
      guidance_B, steps: as in `sample`.

    Returns:
      The images, and what follows the queries.
    """
    state_BPD, after = run(query_BPD)
    return self.sample(
      state_BPD, valid_BP, key_B, guidance_U=guidance_B, steps=steps
    ), after
