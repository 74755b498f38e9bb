"""Log-mel features in numpy for the judges and the speech metrics, independent of the model's own mel."""

import functools

import numpy as np

WINDOW_SECONDS = 0.032
HOP_SECONDS = 0.010
FLOOR = (
  1e-3  # added to mel magnitudes (full scale is 1) before the logarithm: about -60 dB
)
QUIET = 0.04  # share of the loudest hop's level below which the ends of a clip count as silence


@functools.cache
def mel_filters(rate: int, size: int, mels: int) -> np.ndarray:
  """Triangles on the mel scale (2595·log10(1 + f/700), O'Shaughnessy 1987), each of unit sum; (size // 2 + 1, mels)."""
  top = 2595 * np.log10(1 + rate / 2 / 700)
  edges = 700 * (10 ** (np.linspace(0, top, mels + 2) / 2595) - 1)
  frequency = np.fft.rfftfreq(size, 1 / rate)[:, None]
  low, middle, high = edges[:-2], edges[1:-1], edges[2:]
  triangles = np.clip(
    np.minimum(
      (frequency - low) / (middle - low), (high - frequency) / (high - middle)
    ),
    0,
    None,
  )
  return (triangles / np.maximum(triangles.sum(0), 1e-9)).astype(np.float32)


def log_mel(wave: np.ndarray, *, rate: int, mels: int = 32) -> np.ndarray:
  """Natural logarithm of mel magnitudes, (columns, mels), one column every 10 ms; magnitude 1 is a full-scale sine."""
  size, hop = round(WINDOW_SECONDS * rate), round(HOP_SECONDS * rate)
  columns = max(1, -(-len(wave) // hop))
  padded = np.pad(
    np.asarray(wave, np.float32), (size // 2, columns * hop - len(wave) + size)
  )
  frames = np.lib.stride_tricks.sliding_window_view(padded, size)[: columns * hop : hop]
  window = np.hanning(size).astype(np.float32)
  magnitude = np.abs(np.fft.rfft(frames * window, axis=-1)) * (2 / window.sum())
  return np.log(magnitude.astype(np.float32) @ mel_filters(rate, size, mels) + FLOOR)


def trim(wave: np.ndarray, *, rate: int) -> np.ndarray:
  """Cuts the silent ends off; a clip that is silent all through comes back whole."""
  hop = round(HOP_SECONDS * rate)
  hops = len(wave) // hop
  if not hops:
    return wave
  level = np.sqrt(np.mean(np.square(wave[: hops * hop].reshape(hops, hop)), axis=1))
  loud = np.flatnonzero(level > QUIET * level.max())
  return wave[loud[0] * hop : (loud[-1] + 1) * hop] if len(loud) else wave


def stretch(mel: np.ndarray, columns: int) -> np.ndarray:
  """Time-normalises (any, mels) to (columns, mels) by linear interpolation: fast and slow takes of a word line up."""
  at = np.linspace(0, len(mel) - 1, columns)
  left = np.floor(at).astype(int)
  right = np.minimum(left + 1, len(mel) - 1)
  share = (at - left)[:, None].astype(np.float32)
  return mel[left] * (1 - share) + mel[right] * share
