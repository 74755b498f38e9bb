"""What the codec is trained for: log-mel spectra at several scales, the wave, and latents near their codes."""

import functools
from typing import NamedTuple

import jax
from jax import Array
import jax.numpy as jnp
from jaxtyping import Float

from omni_jax.modalities.audio.codec import Codec
from omni_jax.modalities.audio.mel import log_mel_columns, overlap
from omni_jax.modalities.audio.quantizer import (
  CodecBuffers,
  CodeStats,
  perplexity,
  quantize,
)
from omni_jax.modalities.audio.sizes import AudioConfig

WINDOWS = (64, 128, 256, 512)  # samples at 8 kHz; they grow with the rate


class CodecMetrics(NamedTuple):
  mel: Array  # mean |difference| of log-mel power over `WINDOWS`, in nepers of power (× 4.34 = dB)
  wave: Array  # mean |difference| of samples over the clip's mean |sample|
  commitment: Array
  perplexity_J: Array  # entries in effective use, in this batch


class CodecOutput(NamedTuple):
  metrics: CodecMetrics
  stats: CodeStats


def scaled_windows(rate: int) -> tuple[int, ...]:
  return tuple(window * round(rate / 8000) for window in WINDOWS)


def mel_distance(
  wave_NS: Float[Array, 'N S'],
  other_NS: Float[Array, 'N S'],
  mask_NR: Float[Array, 'N R'],
  audio: AudioConfig,
) -> Array:
  """Mean |difference| of log-mel power over windows of several lengths over the valid frames.

  A column belongs to the frame in which its window ends, so padding behind a clip is never seen.
  """
  total = 0.0
  for window in scaled_windows(audio.rate):
    hop = window // 4
    columns = functools.partial(
      log_mel_columns, rate=audio.rate, mels=window * 5 // 32, window=window, hop=hop
    )
    padded, other = (
      jnp.pad(x, ((0, 0), (overlap(window, hop), 0))) for x in (wave_NS, other_NS)
    )
    mask_NC = jnp.repeat(mask_NR, audio.frame // hop, axis=1)
    distance_NC = jnp.abs(columns(padded) - columns(other)).mean(-1)
    total += (distance_NC * mask_NC).sum() / jnp.maximum(mask_NC.sum(), 1)
  return total / len(WINDOWS)


def wave_distance(
  wave_NS: Float[Array, 'N S'],
  other_NS: Float[Array, 'N S'],
  mask_NR: Float[Array, 'N R'],
  audio: AudioConfig,
) -> Array:
  """Mean |difference| over the mean |sample| of the valid frames."""
  mask_NS = jnp.repeat(mask_NR, audio.frame, axis=1)
  return (jnp.abs(wave_NS - other_NS) * mask_NS).sum() / jnp.maximum(
    (jnp.abs(wave_NS) * mask_NS).sum(), 1e-3
  )


def codec_forward(
  codec: Codec,
  buffers: CodecBuffers,
  wave_NS: Float[Array, 'N S'],
  mask_NR: Float[Array, 'N R'],
  key: Array,
) -> tuple[Array, CodecOutput]:
  """One pass for training: (loss, metrics and statistics for `update_buffers`).

  Args:
    mask_NR: 1 for the frames that hold samples of the clip, 0 for the padding behind it.
    key: of the quantiser dropout.
  """
  config = codec.config
  drop_key, raw_key = jax.random.split(key)
  latent_NRZ = codec.encode(wave_NS)
  coded = quantize(
    latent_NRZ, buffers, mask_NR, quantizer_dropout(codec, wave_NS.shape[0], drop_key)
  )
  raw_N = jax.random.bernoulli(raw_key, config.unquantized, wave_NS.shape[:1])
  made_NS = codec.decode(jnp.where(raw_N[:, None, None], latent_NRZ, coded.latent_NRZ))
  mel = mel_distance(wave_NS, made_NS, mask_NR, codec.audio)
  wave = wave_distance(wave_NS, made_NS, mask_NR, codec.audio)
  loss = mel + config.waveform * wave + config.commitment * coded.commitment
  return loss, CodecOutput(
    CodecMetrics(mel, wave, coded.commitment, perplexity(coded.stats.count_JE)),
    coded.stats,
  )


def quantizer_dropout(codec: Codec, n: int, key: Array) -> Array:
  """keep_NJ: a share `dropout` of the clips keeps only its first 1…J codebooks."""
  j = codec.config.codebooks
  drop_key, level_key = jax.random.split(key)
  dropped_N = jax.random.bernoulli(drop_key, codec.config.dropout, (n,))
  kept_N = jnp.where(dropped_N, jax.random.randint(level_key, (n,), 1, j + 1), j)
  return (jnp.arange(j)[None] < kept_N[:, None]).astype(jnp.float32)
