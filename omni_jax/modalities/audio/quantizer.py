"""Residual vector quantisation whose codebooks are buffers: pure functions of (config, latents, buffers).

Each codebook codes what the ones before it left over (SoundStream, Zeghidour et al. 2021). Entries are moving averages
of the latents that chose them (van den Oord et al. 2017, appendix A.1); an entry that nobody chooses is thrown onto a
latent of the batch.
"""

import dataclasses
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int

DEAD = 0.1  # of the mean use of a codebook: an entry used less is restarted
NEWBORN = 0.5  # of the mean use: what a restarted entry counts as
JITTER = 0.01  # of a latent's size: tells apart two entries restarted onto one latent


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
  """Sizes of the residual quantiser.

  Attributes:
    latent: width of a latent frame (Z).
    codebooks: how many (J); a frame costs J·log2(entries) bits.
    entries: of one codebook (E).
    decay: of the moving averages, per update.
  """

  latent: int = 64
  codebooks: int = 8
  entries: int = 256
  decay: float = 0.98


class CodecBuffers(NamedTuple):
  """State that no optimizer touches. A codebook with no counts is not born yet: it is all zeros and codes nothing."""

  codebook_JEZ: Array
  count_JE: Array  # moving average of choices per update
  sum_JEZ: Array  # moving average of the sum of the latents that chose the entry


class CodeStats(NamedTuple):
  """What a batch says about the codebooks."""

  count_JE: Array
  sum_JEZ: Array
  residual_JTZ: Array  # what each codebook was asked to code
  mask_T: Array


class Quantized(NamedTuple):
  latent_NRZ: (
    Array  # sum of the chosen entries; gradients pass straight through to the input
  )
  code_NRJ: Array  # int32
  commitment: Array  # mean squared distance from the residuals to the chosen entries, summed over codebooks
  stats: CodeStats


def init_buffers(config: QuantizerConfig) -> CodecBuffers:
  """Unborn codebooks: the first J updates bring one each to life, with latents of their batches as entries."""
  count_JE = jnp.zeros((config.codebooks, config.entries))
  sum_JEZ = jnp.zeros((config.codebooks, config.entries, config.latent))
  return CodecBuffers(sum_JEZ, count_JE, sum_JEZ)


def quantize(
  latent_NRZ: Float[Array, 'N R Z'],
  buffers: CodecBuffers,
  mask_NR: Float[Array, 'N R'],
  keep_NJ: Float[Array, 'N J'] | None = None,
) -> Quantized:
  """Codes every frame.

  Args:
    mask_NR: 1 for frames that count in the commitment and in the statistics; all frames are coded.
    keep_NJ: 1 for the codebooks whose entries make up the clip's latent (quantiser dropout); all by default.
  """
  n, r, z = latent_NRZ.shape
  j, e, _ = buffers.codebook_JEZ.shape
  keep_NJ = jnp.ones((n, j)) if keep_NJ is None else keep_NJ
  keep_JT = jnp.repeat(keep_NJ, r, axis=0).T
  mask_T = mask_NR.reshape(n * r)
  norm = jnp.maximum(mask_T.sum(), 1) * z

  def level(carry, inputs):
    residual_TZ, total_TZ = carry
    codebook_EZ, keep_T = inputs
    # |x - c|² without |x|², which is the same for every entry.
    distance_TE = (
      0.5 * jnp.square(codebook_EZ).sum(-1)[None]
      - jax.lax.stop_gradient(residual_TZ) @ codebook_EZ.T
    )
    code_T = jnp.argmin(distance_TE, axis=-1).astype(jnp.int32)
    # One-hot matmuls, not gather and scatter: these are slow on the CPU and the statistics need the one-hot anyway.
    choice_TE = jax.nn.one_hot(code_T, e)
    entry_TZ = jax.lax.stop_gradient(choice_TE @ codebook_EZ)
    commitment = (jnp.square(residual_TZ - entry_TZ).sum(-1) * mask_T).sum() / norm
    choice_TE = choice_TE * mask_T[:, None]
    fixed_TZ = jax.lax.stop_gradient(residual_TZ)
    stats = (choice_TE.sum(0), choice_TE.T @ fixed_TZ, fixed_TZ)
    return (residual_TZ - entry_TZ, total_TZ + entry_TZ * keep_T[:, None]), (
      code_T,
      commitment,
      stats,
    )

  latent_TZ = latent_NRZ.reshape(n * r, z)
  (_, total_TZ), (code_JT, commitment_J, stats) = jax.lax.scan(
    level, (latent_TZ, jnp.zeros_like(latent_TZ)), (buffers.codebook_JEZ, keep_JT)
  )
  through_TZ = latent_TZ + jax.lax.stop_gradient(total_TZ - latent_TZ)
  return Quantized(
    through_TZ.reshape(n, r, z),
    code_JT.T.reshape(n, r, j),
    commitment_J.sum(),
    CodeStats(*stats, mask_T),
  )


def dequantize(
  code_NRJ: Int[Array, 'N R J'], buffers: CodecBuffers
) -> Float[Array, 'N R Z']:
  """Latents of the codes. Given fewer codebooks than there are, the first ones are meant."""
  j = code_NRJ.shape[-1]
  entry_JNRZ = jax.vmap(lambda codebook_EZ, code_NR: codebook_EZ[code_NR])(
    buffers.codebook_JEZ[:j], jnp.moveaxis(code_NRJ, -1, 0)
  )
  return entry_JNRZ.sum(0)


def update_buffers(
  config: QuantizerConfig, buffers: CodecBuffers, stats: CodeStats, key: Array
) -> CodecBuffers:
  """Moving averages towards the batch, then births and restarts from latents of the batch."""
  born_J = buffers.count_JE.sum(-1) > 0
  # One codebook is born per update, because what it is to code exists only once the one before it codes something.
  newborn_J = ~born_J & jnp.concatenate([jnp.ones(1, bool), born_J[:-1]])
  count_JE = config.decay * buffers.count_JE + (1 - config.decay) * stats.count_JE
  sum_JEZ = config.decay * buffers.sum_JEZ + (1 - config.decay) * stats.sum_JEZ

  mean_J = jnp.where(
    born_J, count_JE.mean(-1), jnp.maximum(stats.mask_T.sum(), 1) / config.entries
  )
  dead_JE = (count_JE < DEAD * mean_J[:, None]) | newborn_J[:, None]
  pick_key, jitter_key = jax.random.split(key)
  weight_T = stats.mask_T / jnp.maximum(stats.mask_T.sum(), 1)
  pick_E = jax.random.choice(pick_key, len(weight_T), (config.entries,), p=weight_T)
  latent_JEZ = stats.residual_JTZ[:, pick_E]
  size_J = jnp.sqrt(jnp.mean(jnp.square(latent_JEZ), axis=(1, 2)))
  latent_JEZ = latent_JEZ + JITTER * size_J[:, None, None] * jax.random.normal(
    jitter_key, latent_JEZ.shape
  )

  start_J = NEWBORN * mean_J
  count_JE = jnp.where(dead_JE, start_J[:, None], count_JE)
  sum_JEZ = jnp.where(dead_JE[:, :, None], latent_JEZ * start_J[:, None, None], sum_JEZ)
  alive_J = born_J | newborn_J
  count_JE = jnp.where(alive_J[:, None], count_JE, 0)
  sum_JEZ = jnp.where(alive_J[:, None, None], sum_JEZ, 0)
  return CodecBuffers(
    sum_JEZ / jnp.maximum(count_JE, 1e-8)[:, :, None], count_JE, sum_JEZ
  )


def perplexity(count_JE: Float[Array, 'J E']) -> Float[Array, 'J']:
  """Exponential of the entropy of the use of each codebook: 1…E, how many entries are in effective use."""
  share_JE = count_JE / jnp.maximum(count_JE.sum(-1, keepdims=True), 1e-8)
  return jnp.exp(-(share_JE * jnp.log(jnp.maximum(share_JE, 1e-20))).sum(-1))
