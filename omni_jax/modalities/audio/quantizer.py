"""Residual vector quantization, as pure functions of config, latents and buffers.

Each codebook codes what the ones before it left over (SoundStream, Zeghidour et al.
2021). The codebooks are buffers: their entries are moving averages of the latents that
chose them (van den Oord et al. 2017, appendix A.1), and an entry that is rarely chosen
restarts from a latent of the batch.
"""

import dataclasses
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int

# As a share of the mean use of a codebook's entries:
DEAD = 0.1  # an entry used less than this restarts
START_USE = 0.5  # the use that a restarted entry starts with
# As a share of a latent's size: noise that tells apart entries restarted from the same
# latent.
JITTER = 0.01


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
  """Sizes of the residual quantizer.

  Attributes:
    latent: width of a latent frame (Z).
    codebooks: number of codebooks (J); a frame costs J·log2(entries) bits.
    entries: number of entries of a codebook (E).
    decay: decay of the moving averages, per update.
  """

  latent: int
  codebooks: int
  entries: int
  decay: float


class CodecBuffers(NamedTuple):
  """The quantizer's state, which no optimizer touches.

  A codebook whose counts are all zero is not initialised yet: it is all zeros and codes
  nothing.

  Attributes:
    codebook_JEZ: the entries.
    count_JE: moving average of the choices of each entry per update.
    sum_JEZ: moving average of the sum of the latents that chose each entry.
  """

  codebook_JEZ: Array
  count_JE: Array
  sum_JEZ: Array


class CodeStats(NamedTuple):
  """The statistics of a batch from which the codebooks are updated.

  Attributes:
    count_JE: number of choices of each entry.
    sum_JEZ: sum of the residuals that chose each entry.
    residual_JTZ: the residuals that each codebook had to code.
    mask_T: 1 for the frames that count.
  """

  count_JE: Array
  sum_JEZ: Array
  residual_JTZ: Array
  mask_T: Array


class Quantized(NamedTuple):
  """Coded frames.

  Attributes:
    latent_NRZ: sum of the chosen entries; gradients pass straight through to the input.
    code_NRJ: int32 index of each chosen entry.
    commitment: mean squared distance from the residuals to the chosen entries, summed
      over codebooks.
    stats: statistics for `update_buffers`.
  """

  latent_NRZ: Array
  code_NRJ: Array
  commitment: Array
  stats: CodeStats


def init_buffers(config: QuantizerConfig) -> CodecBuffers:
  """Returns codebooks that are not initialised yet.

  Each of the first J updates initialises one, with latents of its batch as entries.
  """
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
    mask_NR: 1 for the frames that count in the commitment and in the statistics; all
      frames are coded.
    keep_NJ: 1 for the codebooks whose entries make up the clip's latent (quantizer
      dropout); all by default.
  """
  n, r, z = latent_NRZ.shape
  j, e, _ = buffers.codebook_JEZ.shape
  if keep_NJ is None:
    keep_NJ = jnp.ones((n, j))
  keep_JT = jnp.repeat(keep_NJ, r, axis=0).T
  mask_T = mask_NR.reshape(n * r)
  norm = jnp.maximum(mask_T.sum(), 1) * z

  def code_level(carry, inputs):
    residual_TZ, total_TZ = carry
    codebook_EZ, keep_T = inputs
    # |x - c|² / 2 without |x|², which is the same for every entry.
    half_square_1E = 0.5 * jnp.square(codebook_EZ).sum(-1)[None]
    distance_TE = half_square_1E - jax.lax.stop_gradient(residual_TZ) @ codebook_EZ.T
    code_T = jnp.argmin(distance_TE, axis=-1).astype(jnp.int32)
    # One-hot matmuls instead of gather and scatter, which are slow on the CPU; the
    # statistics need the one-hot vectors anyway.
    choice_TE = jax.nn.one_hot(code_T, e)
    entry_TZ = jax.lax.stop_gradient(choice_TE @ codebook_EZ)
    error_T = jnp.square(residual_TZ - entry_TZ).sum(-1)
    commitment = (error_T * mask_T).sum() / norm
    choice_TE = choice_TE * mask_T[:, None]
    fixed_TZ = jax.lax.stop_gradient(residual_TZ)
    stats = (choice_TE.sum(0), choice_TE.T @ fixed_TZ, fixed_TZ)
    carry = (residual_TZ - entry_TZ, total_TZ + entry_TZ * keep_T[:, None])
    return carry, (code_T, commitment, stats)

  latent_TZ = latent_NRZ.reshape(n * r, z)
  start = (latent_TZ, jnp.zeros_like(latent_TZ))
  levels = (buffers.codebook_JEZ, keep_JT)
  (_, total_TZ), outputs = jax.lax.scan(code_level, start, levels)
  code_JT, commitment_J, (count_JE, sum_JEZ, residual_JTZ) = outputs
  straight_through_TZ = latent_TZ + jax.lax.stop_gradient(total_TZ - latent_TZ)
  return Quantized(
    latent_NRZ=straight_through_TZ.reshape(n, r, z),
    code_NRJ=code_JT.T.reshape(n, r, j),
    commitment=commitment_J.sum(),
    stats=CodeStats(count_JE, sum_JEZ, residual_JTZ, mask_T),
  )


def dequantize(
  code_NRJ: Int[Array, 'N R J'], buffers: CodecBuffers
) -> Float[Array, 'N R Z']:
  """Returns the latents of codes.

  The codes may be those of the first J codebooks only.
  """
  j = code_NRJ.shape[-1]

  def entries(codebook_EZ: Array, code_NR: Array) -> Array:
    return codebook_EZ[code_NR]

  codebook_JEZ = buffers.codebook_JEZ[:j]
  code_JNR = jnp.moveaxis(code_NRJ, -1, 0)
  entry_JNRZ = jax.vmap(entries)(codebook_JEZ, code_JNR)
  return entry_JNRZ.sum(0)


def update_buffers(
  config: QuantizerConfig, buffers: CodecBuffers, stats: CodeStats, key: Array
) -> CodecBuffers:
  """Returns the codebooks after one update.

  The averages move towards the batch; then one codebook may be initialised, and entries
  that are rarely used restart from latents of the batch.
  """
  initialised_J = buffers.count_JE.sum(-1) > 0
  # One codebook is initialised per update, because what it has to code exists only once
  # the one before it codes something.
  is_next_J = jnp.concatenate([jnp.ones(1, bool), initialised_J[:-1]])
  is_next_J = ~initialised_J & is_next_J
  count_JE = config.decay * buffers.count_JE + (1 - config.decay) * stats.count_JE
  sum_JEZ = config.decay * buffers.sum_JEZ + (1 - config.decay) * stats.sum_JEZ

  average_J = count_JE.mean(-1)
  expected = jnp.maximum(stats.mask_T.sum(), 1) / config.entries
  mean_J = jnp.where(initialised_J, average_J, expected)
  dead_JE = (count_JE < DEAD * mean_J[:, None]) | is_next_J[:, None]
  pick_key, jitter_key = jax.random.split(key)
  weight_T = stats.mask_T / jnp.maximum(stats.mask_T.sum(), 1)
  pick_E = jax.random.choice(pick_key, len(weight_T), (config.entries,), p=weight_T)
  latent_JEZ = stats.residual_JTZ[:, pick_E]
  size_J = jnp.sqrt(jnp.mean(jnp.square(latent_JEZ), axis=(1, 2)))
  latent_JEZ = latent_JEZ + JITTER * size_J[:, None, None] * jax.random.normal(
    jitter_key, latent_JEZ.shape
  )

  start_J = START_USE * mean_J
  count_JE = jnp.where(dead_JE, start_J[:, None], count_JE)
  sum_JEZ = jnp.where(dead_JE[:, :, None], latent_JEZ * start_J[:, None, None], sum_JEZ)
  initialised_J = initialised_J | is_next_J
  count_JE = jnp.where(initialised_J[:, None], count_JE, 0)
  sum_JEZ = jnp.where(initialised_J[:, None, None], sum_JEZ, 0)
  codebook_JEZ = sum_JEZ / jnp.maximum(count_JE, 1e-8)[:, :, None]
  return CodecBuffers(codebook_JEZ, count_JE, sum_JEZ)


def perplexity(count_JE: Float[Array, 'J E']) -> Float[Array, 'J']:
  """Returns the effective number of entries in use of each codebook, 1…E.

  It is the exponential of the entropy of their use.
  """
  share_JE = count_JE / jnp.maximum(count_JE.sum(-1, keepdims=True), 1e-8)
  return jnp.exp(-(share_JE * jnp.log(jnp.maximum(share_JE, 1e-20))).sum(-1))
