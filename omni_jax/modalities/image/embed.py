"""The embedding of images: seen patches, drawn patches and queries."""

import dataclasses

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int, Shaped, UInt8

from omni_jax import sharding
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.nn.attention import Attention
from omni_jax.nn.blocks import scan_blocks
from omni_jax.nn.layers import Linear, normal, RMSNorm, SwiGLU
from omni_jax.nn.pool import Pool
from omni_jax.types import Stream

HALF = 2**-0.5  # standard deviation of two tables whose sum has deviation 1


def normalised(value: UInt8[Array, '*M Y'], image: ImageConfig) -> Float[Array, '*M Y']:
  """Returns patches of bytes as the model sees them: (pixel - mean) / std."""
  return (value.astype(jnp.float32) / 255 - image.mean) / image.std


def as_bytes(patch: Float[Array, '*M Y'], image: ImageConfig) -> UInt8[Array, '*M Y']:
  """Returns patches as bytes, clipped and rounded: the inverse of `normalised`.

  The rounding is that of `files.bytes_of`.
  """
  pixels = jnp.clip(patch * image.std + image.mean, 0, 1)
  return jnp.floor(pixels * 255 + 0.5).astype(jnp.uint8)


class Places(nnx.Module):
  """A learned absolute place: the sum of a table row per patch row and per column."""

  def __init__(self, grid: tuple[int, int], width: int, *, rngs: nnx.Rngs):
    high, wide = grid
    role = sharding.Role.TABLE
    axes = (None, 'embed')
    init = normal(HALF)
    self.rows = sharding.param(rngs, (high, width), axes, init, role=role)
    self.columns = sharding.param(rngs, (wide, width), axes, init, role=role)

  def __call__(
    self, place_M3: Int[Array, '*M 3'], dtype: DTypeLike
  ) -> Float[Array, '*M D']:
    """Returns the embedding of each (time, row, column); the time is not used.

    Multiplies by one-hot rows: the gradients of gathers are slow on XLA:CPU, and the
    tables are small.
    """
    row_MD = one_hot_rows(self.rows[...], place_M3[..., 1], dtype)
    return row_MD + one_hot_rows(self.columns[...], place_M3[..., 2], dtype)


def one_hot_rows(
  table_ND: Float[Array, 'N D'], index: Int[Array, '*M'], dtype: DTypeLike
) -> Float[Array, '*M D']:
  """Returns rows of a small table, by multiplication with one-hot vectors."""
  return jax.nn.one_hot(index, len(table_ND), dtype=dtype) @ table_ND.astype(dtype)


@dataclasses.dataclass(frozen=True)
class ImageEmbedConfig:
  """Sizes of the encoder between seen patches and the decoder.

  Attributes:
    layers: number of layers; 0 for no encoder.
    heads: attention heads of each layer.
    hidden: hidden width of each layer's SwiGLU.
  """

  layers: int
  heads: int
  hidden: int


class EncoderBlock(nnx.Module):
  """Pre-norm attention over all patches of an image, then a SwiGLU."""

  def __init__(self, c: ImageEmbedConfig, width: int, *, rngs: nnx.Rngs):
    self.attention_norm = RMSNorm(width, rngs=rngs)
    self.mlp_norm = RMSNorm(width, rngs=rngs)
    self.attention = Attention(width, c.heads, c.heads, width // c.heads, rngs=rngs)
    self.mlp = SwiGLU(width, c.hidden, rngs=rngs)

  def __call__(self, x_UPD: Float[Array, 'U P D'], pool: Pool) -> Float[Array, 'U P D']:
    y_UPD, _ = self.attention(self.attention_norm(x_UPD), pool.reach())
    x_UPD = x_UPD + y_UPD
    return sharding.shard_items(x_UPD + self.mlp(self.mlp_norm(x_UPD)))


class ImageEmbed(nnx.Module):
  """A linear layer on raw patches plus their place; learned queries for drawing.

  With an encoder, the patches of a seen image attend to each other before the decoder
  reads them.

  Args:
    c: config of the encoder.
    image: sizes of images.
    block: number of patches in a block of a pool; attention stays within a block.
    width: width of the decoder.
  """

  def __init__(
    self,
    c: ImageEmbedConfig,
    image: ImageConfig,
    block: int,
    width: int,
    *,
    rngs: nnx.Rngs,
  ):
    self.image = image
    self.block = block
    self.encoder = nnx.List(
      [EncoderBlock(c, width, rngs=rngs) for _ in range(c.layers)]
    )
    self.patch = Linear(image.values, width, (None, 'embed'), rngs=rngs)
    self.place = Places(image.grid, width, rngs=rngs)
    self.query = Places(image.grid, width, rngs=rngs)
    self.clean = sharding.param(
      rngs, (width,), (None,), normal(1.0), role=sharding.Role.TABLE
    )

  def _patches(
    self, value: Shaped[Array, '*M Y'], place: Int[Array, '*M 3'], dtype: DTypeLike
  ) -> Float[Array, '*M D']:
    x = normalised(value, self.image).astype(dtype)
    return self.patch(x) + self.place(place, dtype)

  def read(self, stream: Stream, dtype: DTypeLike) -> Float[Array, 'B M D']:
    """Returns the embeddings of seen patches."""
    x_BMD = self._patches(stream.value_BM, stream.place_BM3, dtype)
    if not len(self.encoder):
      return x_BMD
    items = stream.form_BN3.shape[1]
    longest = self.image.patches
    pool = Pool.of(stream.item_BM, items, block=self.block, longest=longest)
    x_UPD = pool.blocks(x_BMD)

    def apply(block: EncoderBlock, x_UPD: Array, _: None) -> tuple[Array, None]:
      return block(x_UPD, pool), None

    x_UPD, _ = scan_blocks(apply, self.encoder, x_UPD, dtype=dtype)
    return pool.rows(x_UPD, len(x_BMD))

  def written(
    self, value: Shaped[Array, '*M Y'], place: Int[Array, '*M 3'], dtype: DTypeLike
  ) -> Float[Array, '*M D']:
    """Returns the embeddings of drawn patches, as later positions see them."""
    return self._patches(value, place, dtype) + self.clean[...].astype(dtype)

  def queries(
    self, place: Int[Array, '*M 3'], dtype: DTypeLike
  ) -> Float[Array, '*M D']:
    """Returns the learned queries of patches to draw."""
    return self.query(place, dtype)
