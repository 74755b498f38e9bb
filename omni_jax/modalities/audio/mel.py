"""Log-mel columns by matmul, for the model's hearing and for the codec's loss."""

import functools
import math

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped
import numpy as np

from omni_jax.modalities.audio.sizes import AudioConfig, FULL_SCALE

# Mean and standard deviation of log power over synthesised speech of rms 0.1; they
# bring `log_mel_patches` to about zero mean and unit deviation.
MEAN = -11.0
DEVIATION = 3.0
# Thresholds in deviations. A column is loud if it is less than LOUD (26 dB) below the
# loudest of its clip. Values below QUIET, relative to the mean of the loud columns, are
# silence.
LOUD = 2.0
QUIET = -2.5
FLOOR = 1e-7  # power below which all is silence; a sine of amplitude 1 has 1/4


def as_wave(samples: Shaped[Array, '*M S']) -> Float[Array, '*M S']:
  """Returns 16-bit samples as floats in [-1, 1]; floats stay as they are."""
  if samples.dtype == jnp.int16:
    return samples.astype(jnp.float32) / FULL_SCALE
  return samples


def hz_to_mel(hz: float | np.ndarray) -> float | np.ndarray:
  """Returns frequencies in mel (O'Shaughnessy 1987).

  The scale is about linear below 700 Hz and logarithmic above.
  """
  return 2595.0 * np.log10(1.0 + np.asarray(hz, np.float64) / 700.0)


def mel_to_hz(mel: float | np.ndarray) -> float | np.ndarray:
  """Returns frequencies in Hz: the inverse of `hz_to_mel`."""
  return 700.0 * (10.0 ** (np.asarray(mel, np.float64) / 2595.0) - 1.0)


@functools.cache
def mel_filterbank(mels: int, window: int, rate: int) -> np.ndarray:
  """Returns triangular filters, float32 (window//2 + 1, mels); each band sums to 1.

  The bands are equally spaced in mel from 0 to rate/2. A band so narrow that no bin
  falls into it takes the bin nearest to its centre.

  Args:
    mels: number of bands.
    window: samples of the Fourier transform.
    rate: samples per second.
  """
  bin_hz = np.arange(window // 2 + 1) * rate / window
  edge_hz = np.asarray(mel_to_hz(np.linspace(0.0, hz_to_mel(rate / 2), mels + 2)))
  low = edge_hz[None, :-2]
  mid = edge_hz[None, 1:-1]
  high = edge_hz[None, 2:]
  hz = bin_hz[:, None]
  rising = (hz - low) / (mid - low)
  falling = (high - hz) / (high - mid)
  weight = np.maximum(0.0, np.minimum(rising, falling))
  for band in np.flatnonzero(weight.sum(0) == 0):
    centre_hz = edge_hz[band + 1]
    nearest = np.abs(bin_hz - centre_hz).argmin()
    weight[nearest, band] = 1.0
  return (weight / weight.sum(0, keepdims=True)).astype(np.float32)


@functools.cache
def fourier_matrix(window: int, length: int) -> np.ndarray:
  """Returns a matrix: a Hann window and real DFT of the last samples of `length`.

  It is float32 (length, 2·(window//2 + 1)), first all cosines, then all sines, and so
  scaled that a sine of amplitude a has power a²/4 in its bin.

  Args:
    window: number of the last samples that are transformed.
    length: number of samples.
  """
  n = np.arange(window)
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
  scale = hann / hann.sum()
  phase = 2 * np.pi * n[:, None] * np.arange(window // 2 + 1)[None] / window
  waves = np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
  matrix = waves * scale[:, None]
  return np.pad(matrix, ((length - window, 0), (0, 0))).astype(np.float32)


def overlap(window: int, hop: int) -> int:
  """Returns how many samples before a hop its window may need, in whole hops."""
  return (math.ceil(window / hop) - 1) * hop


def power_columns(
  wave_NS: Float[Array, 'N S'], window: int, hop: int
) -> Float[Array, 'N C bins']:
  """Returns the power spectrum of the `window` samples that end with each hop.

  The columns are causal. The first `overlap(window, hop)` samples serve as context only
  and have no columns of their own.
  """
  n, samples = wave_NS.shape
  assert samples % hop == 0, (samples, hop)
  hops = math.ceil(window / hop)
  hop_NCS = wave_NS.reshape(n, samples // hop, hop)
  columns = samples // hop - hops + 1
  parts = [hop_NCS[:, i : i + columns] for i in range(hops)]
  frames = jnp.concatenate(parts, axis=-1)
  spectrum = frames @ jnp.asarray(fourier_matrix(window, hops * hop))
  cosine, sine = jnp.split(spectrum, 2, axis=-1)
  return jnp.square(cosine) + jnp.square(sine)


def log_mel_columns(
  wave_NS: Float[Array, 'N S'], *, rate: int, mels: int, window: int, hop: int
) -> Float[Array, 'N C mels']:
  """Returns the natural log of the mel power of `power_columns`, softly floored."""
  power = power_columns(wave_NS, window, hop)
  mel_power = power @ jnp.asarray(mel_filterbank(mels, window, rate))
  return jnp.log(mel_power + FLOOR)


def with_past(
  frame_NRS: Float[Array, 'N R S'], clip_NR: Int[Array, 'N R'], samples: int
) -> Float[Array, 'N R past']:
  """Returns each frame after the `samples` that precede it in its own clip.

  The past is zeros before the start of a clip.
  """
  r, frame = frame_NRS.shape[1:]
  parts = [frame_NRS]
  for back in range(1, 1 + math.ceil(samples / frame)):
    earlier_NRS = jnp.pad(frame_NRS, ((0, 0), (back, 0), (0, 0)))[:, :r]
    earlier_NR = jnp.pad(clip_NR, ((0, 0), (back, 0)))[:, :r]
    same_clip = (earlier_NR == clip_NR)[..., None]
    parts.insert(0, jnp.where(same_clip, earlier_NRS, 0))
  return jnp.concatenate(parts, axis=-1)[..., -(samples + frame) :]


def log_mel_patches(
  frame_NRS: Float[Array, 'N R S'], clip_NR: Int[Array, 'N R'], audio: AudioConfig
) -> Float[Array, 'N R X']:
  """Returns the `mel_hops` log-mel columns of each frame side by side.

  X = audio.mel_values. A frame depends only on its own and on earlier samples of its
  clip. Silence is about -1.7, speech is within ±2.

  Args:
    clip_NR: number of each frame's clip; several clips may follow each other in a row.
  """
  n, r, frame = frame_NRS.shape
  assert frame == audio.frame and frame % audio.mel_hops == 0, (
    frame,
    audio.frame,
    audio.mel_hops,
  )
  hop = frame // audio.mel_hops
  past = overlap(audio.mel_window, hop)
  heard_TS = with_past(frame_NRS, clip_NR, past).reshape(n * r, -1)
  columns = log_mel_columns(
    heard_TS, rate=audio.rate, mels=audio.mels, window=audio.mel_window, hop=hop
  )
  return ((columns - MEAN) / DEVIATION).reshape(n, r, audio.mel_values)


def levelled(
  mel_NRX: Float[Array, 'N R X'], clip_NR: Int[Array, 'N R'], mels: int
) -> Float[Array, 'N R X']:
  """Returns `log_mel_patches` minus the mean of the loud columns of each clip.

  The mean is taken band by band. This removes what room, microphone and distance add to
  every column of a clip (cepstral mean normalisation, Atal 1974). It is not causal.
  """
  column_NRCk = mel_NRX.reshape(*clip_NR.shape, -1, mels)
  same_NRR = clip_NR[:, :, None] == clip_NR[:, None]
  level_NRC = column_NRCk.mean(axis=-1)
  loudest_NRR = jnp.where(same_NRR, level_NRC.max(axis=-1)[:, None], -jnp.inf)
  loudest_NR = loudest_NRR.max(axis=-1)
  loud_NRC = (level_NRC > loudest_NR[..., None] - LOUD).astype(mel_NRX.dtype)
  sums_NRk = jnp.einsum(
    'nrs,nscm,nsc->nrm', same_NRR.astype(mel_NRX.dtype), column_NRCk, loud_NRC
  )
  counts_NR = jnp.einsum('nrs,nsc->nr', same_NRR.astype(mel_NRX.dtype), loud_NRC)
  # This never divides by 0: the loudest column is itself a loud one.
  mean_NRk = sums_NRk / counts_NR[..., None]
  return jnp.maximum(column_NRCk - mean_NRk[:, :, None], QUIET).reshape(mel_NRX.shape)


@functools.cache
def synthesis_matrix(hop: int, ramp: int) -> np.ndarray:
  """Returns a matrix: the inverse real DFT to hop + ramp samples, faded at both ends.

  It is float32 (2·bins, hop + ramp), cosine amplitudes first. The samples fade in over
  the first `ramp` and out over the last `ramp`; windows that lie `hop` apart sum to 1.
  """
  length = hop + ramp
  n = np.arange(length)
  rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(ramp) + 0.5) / ramp)
  fade = np.concatenate([rise, np.ones(hop - ramp), 1 - rise])
  phase = 2 * np.pi * np.arange(length // 2 + 1)[:, None] * n[None] / length
  waves = np.concatenate([np.cos(phase), np.sin(phase)])
  return (waves * fade[None]).astype(np.float32)
