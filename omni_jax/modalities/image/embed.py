"""Images to patches, and patches and queries to width."""

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from omni_jax import sharding
from omni_jax.nn.layers import gather_rows, Linear, normal
from omni_jax.types import Batch, ImageConfig


def patchify(pixels: Float[Array, '*N h w c'], config: ImageConfig) -> Float[Array, '*N P Y']:
  """Pixels in [0, 1] -> normalised patches, row by row."""
  *n, h, w, c = pixels.shape
  p = config.patch
  x = ((pixels - config.mean) / config.std).reshape(*n, h // p, p, w // p, p, c)
  return jnp.moveaxis(x, -4, -3).reshape(*n, (h // p) * (w // p), p * p * c)


def unpatchify(patches: Float[Array, '*N P Y'], config: ImageConfig) -> Float[Array, '*N h w c']:
  """The inverse, clipped to [0, 1]."""
  *n, _, _ = patches.shape
  rows, columns = config.grid
  p = config.patch
  x = jnp.moveaxis(patches.reshape(*n, rows, columns, p, p, config.channels), -3, -4)
  x = x.reshape(*n, config.height, config.width, config.channels)
  return jnp.clip(x * config.std + config.mean, 0, 1)


class ImageEmbed(nnx.Module):
  """Linear on raw patches plus an absolute place of the patches' own scale; learned queries for images to draw."""

  def __init__(self, config: ImageConfig, width: int, *, rngs: nnx.Rngs):
    self.config = config
    self.patch = Linear(config.values, width, (None, 'embed'), rngs=rngs)
    self.place = sharding.param(rngs, (config.patches, width), (None, 'embed'), normal(1.0))
    self.query = sharding.param(rngs, (config.patches, width), (None, 'embed'), normal(1.0))
    self.clean = sharding.param(rngs, (width,), (None,), normal(1.0))

  def patches(self, pixels_BNhwc: Array, dtype) -> Float[Array, 'B _ D']:
    x_BNPY = patchify(pixels_BNhwc, self.config).astype(dtype)
    x_BNPD = self.patch(x_BNPY) + self.place[...].astype(dtype)
    return x_BNPD.reshape(x_BNPD.shape[0], -1, x_BNPD.shape[-1])

  def __call__(self, batch: Batch, dtype) -> Float[Array, 'B L D']:
    x_BLD = gather_rows(self.patches(batch.seen_BNhwc, dtype), batch.seen_BL)
    drawn = self.patches(batch.drawn_BNhwc, dtype) + self.clean[...].astype(dtype)
    x_BLD += gather_rows(drawn, batch.drawn_BL)
    query = self.query[...].astype(dtype)[jnp.maximum(batch.query_BL, 0)]
    return x_BLD + jnp.where(batch.query_BL[..., None] >= 0, query, 0)
