"""Baseline without a DiT: the decoder itself sees the noised patches and predicts their velocity.

As in Transfusion (Zhou et al. 2024), the patches of an image that is drawn see each other whole; all else stays causal.
A drawing takes as many decoder passes as it has steps, and a training step sees one noise sample of each image.
"""

from collections.abc import Callable
from typing import Any

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from omni_jax.modalities.head_loss import HeadLoss
from omni_jax.modalities.image.embed import patchify, unpatchify
from omni_jax.modalities.image.flow import (
  flow_loss,
  Noised,
  sample,
  start_noise,
  time_features,
)
from omni_jax.nn.layers import gather_rows, Linear, SwiGLU, zeros
from omni_jax.types import Batch, ImageConfig


def _places(batch: Batch) -> tuple[Array, Array]:
  """Index arrays of the query positions (B, N·P); what is absent lies past the end of the row."""
  at_BNP = batch.draw_at_BNP
  at_BQ = jnp.where(at_BNP < 0, batch.token_BL.shape[1], at_BNP).reshape(
    at_BNP.shape[0], -1
  )
  return jnp.arange(at_BNP.shape[0])[:, None], at_BQ


def open_blocks(batch: Batch) -> Int[Array, 'B L']:
  """At the query positions the number (from 1) of the image in its row, elsewhere 0."""
  _, n, patches = batch.draw_at_BNP.shape
  number_Q = jnp.repeat(jnp.arange(1, n + 1), patches)
  return (
    jnp.zeros_like(batch.token_BL).at[_places(batch)].set(number_Q[None], mode='drop')
  )


class PatchHead(nnx.Module):
  """Noised patches and their time to width, and the decoder's state to a velocity."""

  def __init__(self, c: Any, image: ImageConfig, width: int, *, rngs: nnx.Rngs):
    del c  # sizes of the DiT, which is not there
    self.image, self.width = image, width
    self.patch_in = Linear(image.values, width, (None, 'embed'), rngs=rngs)
    self.time = SwiGLU(width, width, rngs=rngs)
    self.out = Linear(width, image.values, ('embed', None), rngs=rngs, init=zeros)

  def noise_in(
    self, x_UPY: Float[Array, 'U P Y'], t_U: Float[Array, 'U'], dtype
  ) -> Float[Array, 'U P D']:
    """What is added to the queries of an image."""
    return (
      self.patch_in(x_UPY.astype(dtype))
      + self.time(time_features(t_U, self.width).astype(dtype))[:, None]
    )

  def embed(
    self, x_BLD: Float[Array, 'B L D'], batch: Batch, noised: Noised | None
  ) -> Float[Array, 'B L D']:
    """Adds the noised images to their queries; images of a prompt, which have no noise, as they are (t = 1)."""
    b, n, p = batch.draw_at_BNP.shape
    if noised is None:
      x_BNPY, t_BN = patchify(batch.drawn_BNhwc, self.image), jnp.ones((b, n))
    else:
      x_BNPY, t_BN = noised.x_BNKPY[:, :, 0], noised.t_BNK[..., 0]
    made = self.noise_in(x_BNPY.reshape(b * n, p, -1), t_BN.reshape(-1), x_BLD.dtype)
    return x_BLD.at[_places(batch)].add(made.reshape(b, n * p, -1), mode='drop')

  def velocity(self, state: Float[Array, '... D']) -> Float[Array, '... Y']:
    """Predicted data - noise."""
    return self.out(state).astype(jnp.float32)

  def loss(
    self, hidden_BLD: Float[Array, 'B L D'], noised: Noised, draw_at_BNP: Array
  ) -> HeadLoss:
    b, n, p = draw_at_BNP.shape
    state_BNPD = gather_rows(hidden_BLD, draw_at_BNP.reshape(b, -1)).reshape(
      b, n, p, hidden_BLD.shape[-1]
    )
    return flow_loss(
      self.velocity(state_BNPD)[:, :, None] - noised.velocity_BNKPY, draw_at_BNP >= 0
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
    """As `DiTHead.draw`, with a decoder pass a step; there is no null condition and so no guidance."""
    del valid_BP, guidance_B

    def embedded(x_BPY, t):
      return query_BPD + self.noise_in(x_BPY, jnp.full(len(x_BPY), t), query_BPD.dtype)

    x_BPY = sample(
      lambda x, t: self.velocity(run(embedded(x, t))[0]),
      start_noise(key_B, self.image),
      steps=steps,
    )
    pixels_Bhwc = unpatchify(x_BPY, self.image)
    return pixels_Bhwc, run(embedded(patchify(pixels_Bhwc, self.image), 1.0))[1]
