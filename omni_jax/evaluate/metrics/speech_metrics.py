"""How close two waves are: log-mel distance, SI-SNR, STOI; and how high a voice is."""

from collections.abc import Sequence
import warnings

import numpy as np

from omni_jax.evaluate.metrics.extras import needs_extra
from omni_jax.evaluate.metrics.features import log_mel, stretch, trim

PITCHES = (60.0, 500.0)  # lowest and highest voice, Hz
VOICED = 0.5  # correlation of a window with itself one period later, from which on it counts as voiced
STOI_SECONDS = 3.0  # STOI needs 30 frames that are not silent: single words are joined up to this length


def mel_distance(reference: np.ndarray, wave: np.ndarray, *, rate: int) -> float:
  """Mean absolute difference of log-mel magnitudes, in nepers (×8.7 = dB), sample by sample aligned."""
  n = min(len(reference), len(wave))
  return float(
    np.mean(np.abs(log_mel(reference[:n], rate=rate) - log_mel(wave[:n], rate=rate)))
  )


def warped_mel_distance(
  reference: np.ndarray, wave: np.ndarray, *, rate: int, columns: int = 32
) -> float:
  """The same for two takes of the same words: silent ends cut, time stretched to the same length."""
  left, right = (
    stretch(log_mel(trim(x, rate=rate), rate=rate), columns) for x in (reference, wave)
  )
  return float(np.mean(np.abs(left - right)))


def si_snr(reference: np.ndarray, wave: np.ndarray) -> float:
  """Scale-invariant signal-to-noise ratio in dB (Le Roux et al. 2019, 'SDR - half-baked or well done?')."""
  n = min(len(reference), len(wave))
  reference, wave = (
    np.asarray(x[:n], np.float64) - np.mean(x[:n]) for x in (reference, wave)
  )
  target = reference * (wave @ reference) / max(reference @ reference, 1e-12)
  noise = wave - target
  return float(10 * np.log10(max(target @ target, 1e-12) / max(noise @ noise, 1e-12)))


def stoi(
  references: Sequence[np.ndarray], waves: Sequence[np.ndarray], *, rate: int
) -> float | None:
  """Short-time objective intelligibility (Taal et al. 2011), 0 to 1, over clips joined to about three seconds."""
  with needs_extra():
    from pystoi import stoi as stoi_of
  scores, left, right = [], [], []
  for reference, wave in zip(references, waves, strict=True):
    n = min(len(reference), len(wave))
    left.append(reference[:n])
    right.append(wave[:n])
    if sum(map(len, left)) >= STOI_SECONDS * rate:
      scores.append(_stoi_joined(stoi_of, left, right, rate))
      left, right = [], []
  if left and not scores:
    scores.append(_stoi_joined(stoi_of, left, right, rate))
  scores = [score for score in scores if score is not None]
  return float(np.mean(scores)) if scores else None


def _stoi_joined(stoi_of, left: list, right: list, rate: int) -> float | None:
  """None where pystoi warns that too little is left without silence: its 1e-5 there is no measurement."""
  with warnings.catch_warnings():
    warnings.simplefilter('error', RuntimeWarning)
    try:
      return float(stoi_of(np.concatenate(left), np.concatenate(right), rate))
    except RuntimeWarning:
      return None


def pitch(wave: np.ndarray, *, rate: int, seconds: float = 0.04) -> float | None:
  """Median fundamental frequency in Hz, by autocorrelation of windows of `seconds`; None where nothing is voiced.

  The correlation at each lag is normalised by the energy of both halves (McLeod and Wyvill 2005), and the first of the
  nearly highest peaks is taken, so that an octave below is not mistaken for the tone.
  """
  size, lags = (
    round(seconds * rate),
    range(round(rate / PITCHES[1]), round(rate / PITCHES[0]) + 1),
  )
  wave = np.asarray(wave, np.float64)
  found = []
  for start in range(0, len(wave) - size - lags[-1], size // 2):
    window = wave[start : start + size + lags[-1]]
    left, energy = window[:size], np.cumsum(np.append(0, window**2))
    both = energy[size] + energy[np.add(lags, size)] - energy[list(lags)]
    match = (
      2 * np.correlate(window, left, mode='valid')[lags[0] :] / np.maximum(both, 1e-12)
    )
    peaks = [
      k for k in range(1, len(match) - 1) if match[k - 1] < match[k] >= match[k + 1]
    ]
    best = max((match[k] for k in peaks), default=0.0)
    if best > VOICED:
      found.append(rate / lags[next(k for k in peaks if match[k] > 0.8 * best)])
  return float(np.median(found)) if found else None
