"""The codec head: a small transformer over the codebooks of the next frame.

It follows Moshi's depth transformer (Défossez et al. 2024).
"""

import dataclasses

from flax import nnx
import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int

from omni_jax import sharding
from omni_jax.modalities.head_loss import UnitLoss
from omni_jax.modalities.text.head import sample_logits
from omni_jax.nn.attention import Attention
from omni_jax.nn.blocks import scan_blocks
from omni_jax.nn.layers import Embedding, gather_rows, Linear, normal, RMSNorm, SwiGLU
from omni_jax.nn.moe import stacked_lecun
from omni_jax.nn.reach import packed_rows, Reach
from omni_jax.types import Stream


@dataclasses.dataclass(frozen=True)
class CodecHeadConfig:
  """Sizes and training of the depth transformer.

  Attributes:
    width: width of the transformer.
    layers: number of blocks.
    heads: attention heads of a block.
    hidden: hidden width of a block's SwiGLU.
    first_weight: weight of the first codebook's loss. Those of the others are 1, and
      all are divided by their sum.
  """

  width: int
  layers: int
  heads: int
  hidden: int
  first_weight: float


class DepthBlock(nnx.Module):
  """Pre-norm attention over the codebooks of a frame, then a SwiGLU."""

  def __init__(self, c: CodecHeadConfig, *, rngs: nnx.Rngs):
    self.norm1 = RMSNorm(c.width, rngs=rngs)
    self.norm2 = RMSNorm(c.width, rngs=rngs)
    self.attention = Attention(c.width, c.heads, c.heads, c.width // c.heads, rngs=rngs)
    self.mlp = SwiGLU(c.width, c.hidden, rngs=rngs)

  def __call__(
    self, x_UJW: Float[Array, 'U J W'], reach: Reach
  ) -> Float[Array, 'U J W']:
    y_UJW, _ = self.attention(self.norm1(x_UJW), reach)
    x_UJW = x_UJW + y_UJW
    return sharding.shard_items(x_UJW + self.mlp(self.norm2(x_UJW)))


class CodecHead(nnx.Module):
  """Models p(code_j | decoder state, codes before j) for the J codebooks of a frame.

  Args:
    c: config of the head.
    codebooks: J.
    entries: number of entries of a codebook.
    width: width of the decoder.
  """

  def __init__(
    self,
    c: CodecHeadConfig,
    codebooks: int,
    entries: int,
    width: int,
    *,
    rngs: nnx.Rngs,
  ):
    self.config = c
    self.codebooks = codebooks
    self.entries = entries
    self.state_in = Linear(width, c.width, ('embed', 'mlp'), rngs=rngs)
    codes: Embedding | None = None
    if codebooks > 1:
      earlier = (codebooks - 1) * entries
      codes = Embedding(earlier, c.width, rngs=rngs, std=1.0)
    self.codes = codes
    self.place = sharding.param(
      rngs, (codebooks, c.width), (None, 'embed'), normal(1.0), role=sharding.Role.TABLE
    )
    self.blocks = nnx.List([DepthBlock(c, rngs=rngs) for _ in range(c.layers)])
    self.norm = RMSNorm(c.width, rngs=rngs)
    self.out = sharding.param(
      rngs,
      (codebooks, c.width, entries),
      (None, 'embed', 'mlp'),
      stacked_lecun,
      sharding.Role.TABLE,
    )

  def logits(
    self, state_UD: Float[Array, 'U D'], code_UJ: Int[Array, 'U J']
  ) -> Float[Array, 'U J E']:
    """Returns fp32 logits of every codebook, given the true codes before it."""
    dtype = state_UD.dtype
    j = self.codebooks
    state_UD = sharding.shard_items(state_UD)
    x_UJW = self.state_in(state_UD)[:, None] + self.place[...].astype(dtype)
    if self.codes is not None:
      index = code_UJ[:, :-1] + jnp.arange(j - 1) * self.entries
      before = self.codes(index, dtype)
      x_UJW = x_UJW + jnp.pad(before, ((0, 0), (1, 0), (0, 0)))
    reach = packed_rows(jnp.ones((len(state_UD), j), jnp.int32))

    def apply(block: DepthBlock, x_UJW: Array, _: None) -> tuple[Array, None]:
      return block(x_UJW, reach), None

    x_UJW, _ = scan_blocks(apply, self.blocks, x_UJW, dtype=dtype)
    x_UJW = self.norm(x_UJW)
    out_JWE = self.out[...].astype(dtype)
    return jnp.einsum('ujw,jwe->uje', x_UJW, out_JWE).astype(jnp.float32)

  def losses(
    self, hidden_BLD: Float[Array, 'B L D'], stream: Stream, key: Array
  ) -> UnitLoss:
    """Returns the cross-entropy of each frame, in nats.

    It is a weighted mean over codebooks.
    """
    del key  # the loss needs no random numbers
    state = gather_rows(hidden_BLD, stream.write_at_BM)
    state_UD = state.reshape(-1, state.shape[-1])
    code_UJ = stream.value_BM.astype(jnp.int32).reshape(-1, self.codebooks)
    logp_UJE = jax.nn.log_softmax(self.logits(state_UD, code_UJ))
    logp_UJ = jnp.take_along_axis(logp_UJE, code_UJ[..., None], -1)[..., 0]
    weight_J = jnp.ones(self.codebooks).at[0].set(self.config.first_weight)
    valid_BM = stream.write_at_BM >= 0
    logp_U = logp_UJ @ (weight_J / weight_J.sum())
    loss_BM = -logp_U.reshape(valid_BM.shape)
    loss_BM = jnp.where(valid_BM, loss_BM, 0.0)
    return UnitLoss(loss_BM, valid_BM.astype(jnp.float32), stream.write_at_BM)

  def sample(
    self,
    state_UD: Float[Array, 'U D'],
    key_U: Array,
    *,
    temperature: Array,
    top_p: Array,
  ) -> Int[Array, 'U J']:
    """Returns the codes of one frame for each state, sampled codebook by codebook.

    J is small, so the whole transformer runs again for each codebook.

    Args:
      key_U: random key of each frame.
      temperature: see `sample_logits`.
      top_p: see `sample_logits`.
    """

    def sample_codebook(j: Array, code_UJ: Array) -> Array:
      logits_UE = jnp.take(self.logits(state_UD, code_UJ), j, axis=1)
      logits_UE = sharding.shard_items(logits_UE)  # as in `generate.decode`

      def pick(logits_E: Array, key: Array) -> Array:
        key = jax.random.fold_in(key, j)
        return sample_logits(logits_E, key, temperature=temperature, top_p=top_p)

      return code_UJ.at[:, j].set(jax.vmap(pick)(logits_UE, key_U))

    start_UJ = jnp.zeros((len(state_UD), self.codebooks), jnp.int32)
    return jax.lax.fori_loop(0, self.codebooks, sample_codebook, start_UJ)
