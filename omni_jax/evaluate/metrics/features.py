"""Log-mel features in numpy for judges and speech metrics.

They are independent of the mel spectrogram that the model itself uses.
"""

import functools

import numpy as np

WINDOW_SECONDS = 0.032
HOP_SECONDS = 0.010
# Added to mel magnitudes (full scale is 1) before the logarithm: about -60 dB.
FLOOR = 1e-3
# Share of the loudest hop's level below which the ends of a clip count as silence.
QUIET = 0.04


@functools.cache
def mel_filters(rate: int, size: int, mels: int) -> np.ndarray:
  """Returns triangular filters on the mel scale, (size // 2 + 1, mels).

  The scale is 2595·log10(1 + f/700) (O'Shaughnessy 1987); each filter sums to 1.

  Args:
    rate: samples per second.
    size: samples of the Fourier transform.
    mels: number of filters.
  """
  top = 2595 * np.log10(1 + rate / 2 / 700)
  edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
  frequency = np.fft.rfftfreq(size, 1 / rate)[:, None]
  low = edges[:-2]
  middle = edges[1:-1]
  high = edges[2:]
  rising = (frequency - low) / (middle - low)
  falling = (high - frequency) / (high - middle)
  triangles = np.clip(np.minimum(rising, falling), 0, None)
  return (triangles / np.maximum(triangles.sum(0), 1e-9)).astype(np.float32)


def log_mel(wave: np.ndarray, *, rate: int, mels: int = 32) -> np.ndarray:
  """Returns the natural logarithm of mel magnitudes, (columns, mels).

  There is one column every 10 ms; a full-scale sine has magnitude 1.
  """
  size = round(WINDOW_SECONDS * rate)
  hop = round(HOP_SECONDS * rate)
  columns = max(1, -(-len(wave) // hop))
  padding = (size // 2, columns * hop - len(wave) + size)
  padded = np.pad(np.asarray(wave, np.float32), padding)
  frames = np.lib.stride_tricks.sliding_window_view(padded, size)[: columns * hop : hop]
  window = np.hanning(size).astype(np.float32)
  magnitude = np.abs(np.fft.rfft(frames * window, axis=-1)) * (2 / window.sum())
  return np.log(magnitude.astype(np.float32) @ mel_filters(rate, size, mels) + FLOOR)


def trim(wave: np.ndarray, *, rate: int) -> np.ndarray:
  """Returns the wave without its silent ends; an entirely silent one is unchanged."""
  hop = round(HOP_SECONDS * rate)
  hops = len(wave) // hop
  if not hops:
    return wave
  power = np.mean(np.square(wave[: hops * hop].reshape(hops, hop)), axis=1)
  level = np.sqrt(power)
  loud = np.flatnonzero(level > QUIET * level.max())
  if not len(loud):
    return wave
  return wave[loud[0] * hop : (loud[-1] + 1) * hop]


def stretch(mel: np.ndarray, columns: int) -> np.ndarray:
  """Returns a mel of any length, (any, mels), interpolated linearly to (columns, mels).

  Fast and slow takes of a word then line up.
  """
  position = np.linspace(0, len(mel) - 1, columns)
  left = np.floor(position).astype(int)
  right = np.minimum(left + 1, len(mel) - 1)
  share = (position - left)[:, None].astype(np.float32)
  return mel[left] * (1 - share) + mel[right] * share
