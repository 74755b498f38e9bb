"""The embedding of text ids."""

from flax import nnx
from jax import Array
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from omni_jax.nn.layers import Embedding


class TextEmbed(nnx.Module):
  """Maps ids to rows of a table, and id 0 (a position without text) to zeros."""

  def __init__(self, vocab_size: int, width: int, *, rngs: nnx.Rngs):
    self.tokens = Embedding(vocab_size, width, rngs=rngs, std=1.0)

  def __call__(
    self, token_BL: Int[Array, '*L'], dtype: DTypeLike
  ) -> Float[Array, '*L D']:
    return self.tokens(jnp.where(token_BL > 0, token_BL, -1), dtype)
