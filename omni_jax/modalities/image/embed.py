"""Images to patches, and patches and queries to width."""

import dataclasses

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from omni_jax import sharding
from omni_jax.nn.attention import Attention
from omni_jax.nn.layers import gather_rows, Linear, normal, RMSNorm, SwiGLU
from omni_jax.nn.reach import whole
from omni_jax.sharding import Role
from omni_jax.types import Batch, ImageConfig


def patchify(
  pixels: Float[Array, '*N h w c'], config: ImageConfig
) -> Float[Array, '*N P Y']:
  """Pixels in [0, 1] -> normalised patches, row by row."""
  *n, h, w, c = pixels.shape
  p = config.patch
  x = ((pixels - config.mean) / config.std).reshape(*n, h // p, p, w // p, p, c)
  return jnp.moveaxis(x, -4, -3).reshape(*n, (h // p) * (w // p), p * p * c)


def unpatchify(
  patches: Float[Array, '*N P Y'], config: ImageConfig
) -> Float[Array, '*N h w c']:
  """The inverse, clipped to [0, 1]."""
  *n, _, _ = patches.shape
  rows, columns = config.grid
  p = config.patch
  x = jnp.moveaxis(patches.reshape(*n, rows, columns, p, p, config.channels), -3, -4)
  x = x.reshape(*n, config.height, config.width, config.channels)
  return jnp.clip(x * config.std + config.mean, 0, 1)


@dataclasses.dataclass(frozen=True)
class ImageEmbedConfig:
  """Attributes: layers, heads, hidden: of the encoder between seen patches and the decoder; 0 layers: none."""

  layers: int = 0
  heads: int = 4
  hidden: int = 256


class EncoderBlock(nnx.Module):
  """Pre-norm attention over all patches of an image, and a perceptron."""

  def __init__(self, c: ImageEmbedConfig, width: int, *, rngs: nnx.Rngs):
    self.attention_norm, self.mlp_norm = (
      RMSNorm(width, rngs=rngs),
      RMSNorm(width, rngs=rngs),
    )
    self.attention = Attention(width, c.heads, c.heads, width // c.heads, rngs=rngs)
    self.mlp = SwiGLU(width, c.hidden, rngs=rngs)

  def __call__(self, x_NPD: Float[Array, 'N P D']) -> Float[Array, 'N P D']:
    x_NPD = (
      x_NPD
      + self.attention(
        self.attention_norm(x_NPD), whole(jnp.ones(x_NPD.shape[:2], bool))
      )[0]
    )
    return sharding.shard_items(x_NPD + self.mlp(self.mlp_norm(x_NPD)))


class ImageEmbed(nnx.Module):
  """Linear on raw patches plus an absolute place of the patches' own scale; learned queries for images to draw.

  With an encoder, the patches of a seen image look at each other before the decoder sees them.
  """

  def __init__(
    self, c: ImageEmbedConfig, config: ImageConfig, width: int, *, rngs: nnx.Rngs
  ):
    self.config = config
    self.encoder = nnx.List(
      [EncoderBlock(c, width, rngs=rngs) for _ in range(c.layers)]
    )
    self.patch = Linear(config.values, width, (None, 'embed'), rngs=rngs)
    self.place = sharding.param(
      rngs, (config.patches, width), (None, 'embed'), normal(1.0), Role.TABLE
    )
    self.query = sharding.param(
      rngs, (config.patches, width), (None, 'embed'), normal(1.0), Role.TABLE
    )
    self.clean = sharding.param(rngs, (width,), (None,), normal(1.0), Role.TABLE)

  def patches(self, pixels_BNhwc: Array, dtype) -> Float[Array, 'B _ D']:
    x_BNPY = patchify(pixels_BNhwc, self.config).astype(dtype)
    x_BNPD = self.patch(x_BNPY) + self.place[...].astype(dtype)
    b, n, p, d = x_BNPD.shape
    return x_BNPD.reshape(b, n * p, d)

  def __call__(self, batch: Batch, dtype) -> Float[Array, 'B L D']:
    x_BLD = jnp.zeros((*batch.token_BL.shape, self.clean.shape[0]), dtype)
    if batch.seen_BNhwc.size:  # rows may have no room for images
      seen_BND = self.patches(batch.seen_BNhwc, dtype)
      for block in self.encoder:
        seen_BND = block(
          seen_BND.reshape(-1, self.config.patches, seen_BND.shape[-1])
        ).reshape(seen_BND.shape)
      x_BLD += gather_rows(seen_BND, batch.seen_BL)
    if not batch.drawn_BNhwc.size:
      return x_BLD
    drawn = self.patches(batch.drawn_BNhwc, dtype) + self.clean[...].astype(dtype)
    x_BLD += gather_rows(drawn, batch.drawn_BL)
    query = self.query[...].astype(dtype)[jnp.maximum(batch.query_BL, 0)]
    return x_BLD + jnp.where(batch.query_BL[..., None] >= 0, query, 0)
