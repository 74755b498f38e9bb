"""Log-mel columns by matmul: what the model hears, and what the codec's loss compares."""

import functools
import math

from jax import Array
import jax.numpy as jnp
from jaxtyping import Float, Int, Shaped
import numpy as np

from omni_jax.modalities.audio.sizes import AudioConfig

# Of log power, over synthesised speech of rms 0.1: brings `log_mel_patches` to about zero mean and unit deviation.
MEAN, DEVIATION = -11.0, 3.0
LOUD = 2.0  # below the loudest column of a clip, in deviations: 26 dB
QUIET = (
  -2.5
)  # below the mean of a clip, in deviations: what is quieter counts as silence
FLOOR = 1e-7  # power below which everything is silence; a sine of amplitude 1 has 1/4


def as_wave(samples: Shaped[Array, '*M S']) -> Float[Array, '*M S']:
  """Returns samples of 16 bits in [-1, 1]; floats are so already."""
  if samples.dtype == jnp.int16:
    return samples.astype(jnp.float32) / 32768
  return samples


def hz_to_mel(hz):
  """O'Shaughnessy 1987: linear below about 700 Hz, logarithmic above."""
  return 2595.0 * np.log10(1.0 + np.asarray(hz, np.float64) / 700.0)


def mel_to_hz(mel):
  return 700.0 * (10.0 ** (np.asarray(mel, np.float64) / 2595.0) - 1.0)


@functools.cache
def mel_filterbank(mels: int, window: int, rate: int) -> np.ndarray:
  """Triangles that are equally spaced in mel from 0 to rate/2: float32 (window//2 + 1, mels), each band sums to 1.

  A band narrower than a bin, which no bin falls into, takes the bin nearest to its centre.
  """
  bin_hz = np.arange(window // 2 + 1) * rate / window
  edge_hz = mel_to_hz(np.linspace(0.0, hz_to_mel(rate / 2), mels + 2))
  low, mid, high = edge_hz[None, :-2], edge_hz[None, 1:-1], edge_hz[None, 2:]
  hz = bin_hz[:, None]
  weight = np.maximum(
    0.0, np.minimum((hz - low) / (mid - low), (high - hz) / (high - mid))
  )
  for band in np.flatnonzero(weight.sum(0) == 0):
    weight[np.abs(bin_hz - edge_hz[band + 1]).argmin(), band] = 1.0
  return (weight / weight.sum(0, keepdims=True)).astype(np.float32)


@functools.cache
def fourier_matrix(window: int, length: int) -> np.ndarray:
  """Hann window and real DFT of the last `window` of `length` samples: float32 (length, 2·(window//2 + 1)).

  First all cosines, then all sines; scaled so that a sine of amplitude a has power a²/4 in its bin.
  """
  n = np.arange(window)
  hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / window)
  phase = 2 * np.pi * n[:, None] * np.arange(window // 2 + 1)[None] / window
  matrix = (
    np.concatenate([np.cos(phase), np.sin(phase)], axis=1)
    * (hann / hann.sum())[:, None]
  )
  return np.pad(matrix, ((length - window, 0), (0, 0))).astype(np.float32)


def overlap(window: int, hop: int) -> int:
  """Samples before a hop that its window may need: whole hops."""
  return (math.ceil(window / hop) - 1) * hop


def power_columns(
  wave_NS: Float[Array, 'N S'], window: int, hop: int
) -> Float[Array, 'N C bins']:
  """Power spectrum of the `window` samples that end with each hop. Causal.

  The first `overlap(window, hop)` samples are only looked back at: there are no columns of them.
  """
  n, samples = wave_NS.shape
  assert samples % hop == 0, (samples, hop)
  hops = math.ceil(window / hop)
  hop_NCS = wave_NS.reshape(n, samples // hop, hop)
  columns = samples // hop - hops + 1
  frames = jnp.concatenate([hop_NCS[:, i : i + columns] for i in range(hops)], axis=-1)
  cosine, sine = jnp.split(
    frames @ jnp.asarray(fourier_matrix(window, hops * hop)), 2, axis=-1
  )
  return jnp.square(cosine) + jnp.square(sine)


def log_mel_columns(
  wave_NS: Float[Array, 'N S'], *, rate: int, mels: int, window: int, hop: int
) -> Float[Array, 'N C mels']:
  """Natural log of mel power, floored softly, of the columns of `power_columns`."""
  return jnp.log(
    power_columns(wave_NS, window, hop)
    @ jnp.asarray(mel_filterbank(mels, window, rate))
    + FLOOR
  )


def with_past(
  frame_NRS: Float[Array, 'N R S'], clip_NR: Int[Array, 'N R'], samples: int
) -> Float[Array, 'N R past']:
  """Every frame behind the `samples` of its own clip that come before it; zeros stand before a clip's start."""
  r, frame = frame_NRS.shape[1:]
  parts = [frame_NRS]
  for back in range(1, 1 + math.ceil(samples / frame)):
    earlier_NRS, earlier_NR = (
      jnp.pad(x, ((0, 0), (back, 0), (0, 0))[: x.ndim])[:, :r]
      for x in (frame_NRS, clip_NR)
    )
    parts.insert(0, jnp.where((earlier_NR == clip_NR)[..., None], earlier_NRS, 0))
  return jnp.concatenate(parts, axis=-1)[..., -(samples + frame) :]


def log_mel_patches(
  frame_NRS: Float[Array, 'N R S'], clip_NR: Int[Array, 'N R'], audio: AudioConfig
) -> Float[Array, 'N R X']:
  """What the model hears of each frame: its `mel_hops` log-mel columns side by side, X = mel_hops · mels.

  A frame depends on its own and earlier samples of its clip only. Silence is about -1.7, speech is within ±2.

  Args:
    clip_NR: a number for each clip: clips may lie one behind the other.
  """
  n, r, frame = frame_NRS.shape
  assert frame == audio.frame and frame % audio.mel_hops == 0, (
    frame,
    audio.frame,
    audio.mel_hops,
  )
  hop = frame // audio.mel_hops
  heard_TS = with_past(frame_NRS, clip_NR, overlap(audio.mel_window, hop)).reshape(
    n * r, -1
  )
  columns = log_mel_columns(
    heard_TS, rate=audio.rate, mels=audio.mels, window=audio.mel_window, hop=hop
  )
  return ((columns - MEAN) / DEVIATION).reshape(n, r, audio.mel_hops * audio.mels)


def levelled(
  mel_NRX: Float[Array, 'N R X'], clip_NR: Int[Array, 'N R'], mels: int
) -> Float[Array, 'N R X']:
  """Columns of `log_mel_patches` less the mean of their clip's loud ones, band by band: what room, microphone and
  distance add to every column of a clip is gone (cepstral mean normalisation, Atal 1974). Not causal.
  """
  column_NRCM = mel_NRX.reshape(*clip_NR.shape, -1, mels)
  same_NRR = clip_NR[:, :, None] == clip_NR[:, None]
  level_NRC = column_NRCM.mean(axis=-1)
  loudest_NR = jnp.where(same_NRR, level_NRC.max(axis=-1)[:, None], -jnp.inf).max(
    axis=-1
  )
  loud_NRC = (level_NRC > loudest_NR[..., None] - LOUD).astype(mel_NRX.dtype)
  sums_NRM = jnp.einsum(
    'nrs,nscm,nsc->nrm', same_NRR.astype(mel_NRX.dtype), column_NRCM, loud_NRC
  )
  counts_NR = jnp.einsum('nrs,nsc->nr', same_NRR.astype(mel_NRX.dtype), loud_NRC)
  mean_NRM = sums_NRM / counts_NR[..., None]  # the loudest column is a loud one
  return jnp.maximum(column_NRCM - mean_NRM[:, :, None], QUIET).reshape(mel_NRX.shape)


@functools.cache
def synthesis_matrix(hop: int, ramp: int) -> np.ndarray:
  """Inverse real DFT into hop + ramp samples that fade in over `ramp` and out over the last `ramp` samples.

  float32 (2·bins, hop + ramp), cosine amplitudes first; windows that lie `hop` apart sum to 1.
  """
  length = hop + ramp
  n = np.arange(length)
  rise = 0.5 - 0.5 * np.cos(np.pi * (np.arange(ramp) + 0.5) / ramp)
  fade = np.concatenate([rise, np.ones(hop - ramp), 1 - rise])
  phase = 2 * np.pi * np.arange(length // 2 + 1)[:, None] * n[None] / length
  return (np.concatenate([np.cos(phase), np.sin(phase)]) * fade[None]).astype(
    np.float32
  )
