"""The codec's training loss: log-mel spectra at several scales, wave and commitment."""

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

WINDOWS = (64, 128, 256, 512)  # samples at 8 kHz; they grow with the sample rate


class CodecMetrics(NamedTuple):
  """Metrics of one batch.

  Attributes:
    mel: mean |difference| of log-mel power over `WINDOWS`, in nepers of power (× 4.34
      is dB).
    wave: mean |difference| of samples over the mean |sample|.
    commitment: commitment loss of the quantizer.
    perplexity_J: entries in effective use, for each codebook.
  """

  mel: Array
  wave: Array
  commitment: Array
  perplexity_J: Array


class CodecOutput(NamedTuple):
  """Results of `codec_forward` besides the loss.

  Attributes:
    metrics: metrics of the batch.
    stats: statistics of the batch, for `update_buffers`.
  """

  metrics: CodecMetrics
  stats: CodeStats


def scaled_windows(rate: int) -> tuple[int, ...]:
  """Returns `WINDOWS` at this sample rate, in samples."""
  return tuple(window * round(rate / 8000) for window in WINDOWS)


def mel_distance(
  wave_NS: Float[Array, 'N S'],
  other_NS: Float[Array, 'N S'],
  mask_NR: Float[Array, 'N R'],
  audio: AudioConfig,
) -> Array:
  """Returns the mean |difference| of log-mel power over windows of several lengths.

  A column belongs to the frame in which its window ends, so padding after a clip is
  never seen.

  Args:
    mask_NR: 1 for the valid frames.
  """
  total = jnp.zeros(())
  for window in scaled_windows(audio.rate):
    hop = window // 4
    mels = window * 5 // 32  # 10 to 80 bands for WINDOWS
    columns = functools.partial(
      log_mel_columns, rate=audio.rate, mels=mels, window=window, hop=hop
    )
    silence = ((0, 0), (overlap(window, hop), 0))
    wave_padded = jnp.pad(wave_NS, silence)
    other_padded = jnp.pad(other_NS, silence)
    mask_NC = jnp.repeat(mask_NR, audio.frame // hop, axis=1)
    distance_NC = jnp.abs(columns(wave_padded) - columns(other_padded)).mean(-1)
    total += (distance_NC * mask_NC).sum() / jnp.maximum(mask_NC.sum(), 1)
  return total / len(WINDOWS)


def wave_distance(
  wave_NS: Float[Array, 'N S'],
  other_NS: Float[Array, 'N S'],
  mask_NR: Float[Array, 'N R'],
  audio: AudioConfig,
) -> Array:
  """Returns the mean |difference| over the mean |sample| of the valid frames.

  Args:
    mask_NR: 1 for the valid frames.
  """
  mask_NS = jnp.repeat(mask_NR, audio.frame, axis=1)
  difference = (jnp.abs(wave_NS - other_NS) * mask_NS).sum()
  loudness = (jnp.abs(wave_NS) * mask_NS).sum()
  return difference / jnp.maximum(loudness, 1e-3)


def codec_forward(
  codec: Codec,
  buffers: CodecBuffers,
  wave_NS: Float[Array, 'N S'],
  mask_NR: Float[Array, 'N R'],
  key: Array,
) -> tuple[Array, CodecOutput]:
  """Returns the training loss of a batch, and its metrics and statistics.

  Args:
    buffers: codebooks of the quantizer.
    mask_NR: 1 for the frames that hold samples of the clip, 0 for the padding after
      it.
    key: random key of the quantizer dropout and of the unquantized clips.
  """
  config = codec.config
  drop_key, raw_key = jax.random.split(key)
  latent_NRZ = codec.encode(wave_NS)
  keep_NJ = quantizer_dropout(codec, wave_NS.shape[0], drop_key)
  coded = quantize(latent_NRZ, buffers, mask_NR, keep_NJ)
  raw_N = jax.random.bernoulli(raw_key, config.unquantized, wave_NS.shape[:1])
  heard_NRZ = jnp.where(raw_N[:, None, None], latent_NRZ, coded.latent_NRZ)
  decoded_NS = codec.decode(heard_NRZ)
  mel = mel_distance(wave_NS, decoded_NS, mask_NR, codec.audio)
  wave = wave_distance(wave_NS, decoded_NS, mask_NR, codec.audio)
  loss = mel + config.waveform * wave + config.commitment * coded.commitment
  used_J = perplexity(coded.stats.count_JE)
  metrics = CodecMetrics(mel, wave, coded.commitment, used_J)
  return loss, CodecOutput(metrics, coded.stats)


def quantizer_dropout(codec: Codec, n: int, key: Array) -> Float[Array, 'N J']:
  """Returns 1 for each codebook that a clip keeps.

  A share `dropout` of the n clips keeps only its first 1…J codebooks.
  """
  config = codec.config
  j = config.codebooks
  drop_key, level_key = jax.random.split(key)
  dropped_N = jax.random.bernoulli(drop_key, config.dropout, (n,))
  level_N = jax.random.randint(level_key, (n,), 1, j + 1)
  kept_N = jnp.where(dropped_N, level_N, j)
  return (jnp.arange(j)[None] < kept_N[:, None]).astype(jnp.float32)
