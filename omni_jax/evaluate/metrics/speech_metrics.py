"""Compares two waves (log-mel distance, SI-SNR, STOI) and measures a voice's pitch."""

from collections.abc import Callable, Sequence
import warnings

import numpy as np

from omni_jax.evaluate.metrics.extras import needs_extra
from omni_jax.evaluate.metrics.features import log_mel, stretch, trim

PITCHES = (60.0, 500.0)  # lowest and highest voice, Hz
# Correlation of a window with itself one period later, above which it counts as voiced.
VOICED = 0.5
# Share of the highest peak that another peak needs to count as nearly as high.
NEARLY_HIGHEST = 0.8
# STOI needs 30 frames that are not silent: single words are joined up to this length.
STOI_SECONDS = 3.0


def mel_distance(reference: np.ndarray, wave: np.ndarray, *, rate: int) -> float:
  """Returns the mean absolute difference of log-mel magnitudes, in nepers (×8.7 = dB).

  The waves are aligned sample by sample; the longer one is cut.
  """
  n = min(len(reference), len(wave))
  difference = log_mel(reference[:n], rate=rate) - log_mel(wave[:n], rate=rate)
  return float(np.mean(np.abs(difference)))


def warped_mel_distance(
  reference: np.ndarray, wave: np.ndarray, *, rate: int, columns: int = 32
) -> float:
  """Returns the log-mel distance of two takes of the same words, in nepers.

  Silent ends are cut and both are stretched to the same length.
  """
  left = stretch(log_mel(trim(reference, rate=rate), rate=rate), columns)
  right = stretch(log_mel(trim(wave, rate=rate), rate=rate), columns)
  return float(np.mean(np.abs(left - right)))


def si_snr(reference: np.ndarray, wave: np.ndarray) -> float:
  """Returns the scale-invariant signal-to-noise ratio in dB.

  See Le Roux et al. 2019, 'SDR - half-baked or well done?'.
  """
  n = min(len(reference), len(wave))
  reference = np.asarray(reference[:n], np.float64) - np.mean(reference[:n])
  wave = np.asarray(wave[:n], np.float64) - np.mean(wave[:n])
  target = reference * (wave @ reference) / max(reference @ reference, 1e-12)
  noise = wave - target
  return float(10 * np.log10(max(target @ target, 1e-12) / max(noise @ noise, 1e-12)))


def stoi(
  references: Sequence[np.ndarray], waves: Sequence[np.ndarray], *, rate: int
) -> float | None:
  """Returns the short-time objective intelligibility (Taal et al. 2011), 0 to 1.

  It is the mean over clips joined to about three seconds; None where all is silent.
  """
  with needs_extra():
    from pystoi import stoi as stoi_of
  scores: list[float | None] = []
  left: list[np.ndarray] = []
  right: list[np.ndarray] = []
  samples = 0
  for reference, wave in zip(references, waves, strict=True):
    n = min(len(reference), len(wave))
    left.append(reference[:n])
    right.append(wave[:n])
    samples += n
    if samples >= STOI_SECONDS * rate:
      scores.append(_stoi_joined(stoi_of, left, right, rate))
      left = []
      right = []
      samples = 0
  if left and not scores:
    scores.append(_stoi_joined(stoi_of, left, right, rate))
  known = [score for score in scores if score is not None]
  return float(np.mean(known)) if known else None


def _stoi_joined(
  stoi_of: Callable[..., float],
  left: Sequence[np.ndarray],
  right: Sequence[np.ndarray],
  rate: int,
) -> float | None:
  """Returns STOI of joined clips, or None where too little of them is not silent.

  pystoi warns in that case; the 1e-5 that it returns is no measurement.
  """
  with warnings.catch_warnings():
    warnings.simplefilter('error', RuntimeWarning)
    try:
      return float(stoi_of(np.concatenate(left), np.concatenate(right), rate))
    except RuntimeWarning:
      return None


def pitch(wave: np.ndarray, *, rate: int, seconds: float = 0.04) -> float | None:
  """Returns the median fundamental frequency in Hz, or None where nothing is voiced.

  Each window of `seconds` is correlated with what follows it. Of the nearly highest
  peaks the first one counts, so that an octave below is not mistaken for the tone.
  """
  size = round(seconds * rate)
  lags = range(round(rate / PITCHES[1]), round(rate / PITCHES[0]) + 1)
  wave = np.asarray(wave, np.float64)
  pitches: list[float] = []
  for start in range(0, len(wave) - size - lags[-1], size // 2):
    window = wave[start : start + size + lags[-1]]
    peak = _first_high_peak(_autocorrelation(window, size, lags))
    if peak is not None:
      pitches.append(rate / lags[peak])
  return float(np.median(pitches)) if pitches else None


def _autocorrelation(window: np.ndarray, size: int, lags: range) -> np.ndarray:
  """Returns the correlation of a window's first `size` samples with those a lag later.

  It is normalised by the energy of both parts (McLeod and Wyvill 2005): 1 where they
  are equal. Shape (lags,).
  """
  energy = np.cumsum(np.append(0, window**2))
  both = energy[size] + energy[np.add(lags, size)] - energy[list(lags)]
  products = np.correlate(window, window[:size], mode='valid')[lags[0] :]
  return 2 * products / np.maximum(both, 1e-12)


def _first_high_peak(match: np.ndarray) -> int | None:
  """Returns the index of the first nearly highest peak, or None if unvoiced."""
  middle = match[1:-1]
  peaks = 1 + np.flatnonzero((match[:-2] < middle) & (middle >= match[2:]))
  best = match[peaks].max(initial=0.0)
  if best <= VOICED:
    return None
  return int(peaks[match[peaks] > NEARLY_HIGHEST * best][0])
