"""Augmentation of sounds that are only heard: speech is said a little differently, on the fly."""

import dataclasses

import numpy as np

TONES = 5
WINDOW_SECONDS = 0.04  # of the pieces that a stretched wave is made of


@dataclasses.dataclass(frozen=True)
class AudioAugment:
  """How much sounds change; each value is drawn evenly between -value and +value, for each sound anew; 0 is off.

  Attributes:
    speed: share of the tempo, as a tape runs: the pitch goes with it (Ko et al. 2015).
    pitch: share of the frequency, the tempo stays.
    gain: decibels, of the whole.
    tone: decibels, of TONES bands that flow into each other: rooms and microphones differ so.
    noise: loudest white noise, full scale is 1; quieter down to a hundredth of it.
    delay: seconds of silence before.
  """

  speed: float = 0.0
  pitch: float = 0.0
  gain: float = 0.0
  tone: float = 0.0
  noise: float = 0.0
  delay: float = 0.0


def varied(
  wave_S: np.ndarray,
  c: AudioAugment,
  rng: np.random.Generator,
  *,
  rate: int,
  limit: int,
) -> np.ndarray:
  """Returns a copy of another tempo, pitch and loudness, later and noisier, of at most `limit` samples."""
  speed, pitch = 1 + rng.uniform(-c.speed, c.speed), 1 + rng.uniform(-c.pitch, c.pitch)
  speed = max(speed, len(wave_S) / limit)
  wave_S = stretched(
    resampled(wave_S, speed * pitch), pitch, window=round(WINDOW_SECONDS * rate)
  )[:limit]
  late = min(int(rng.uniform(0, c.delay) * rate), limit - len(wave_S))
  wave_S = np.pad(wave_S, (late, 0)) * 10 ** (rng.uniform(-c.gain, c.gain) / 20)
  wave_S = coloured(wave_S, rng.uniform(-c.tone, c.tone, TONES)) if c.tone else wave_S
  wave_S = wave_S / max(1.0, np.abs(wave_S).max())
  noise = rng.standard_normal(len(wave_S)) * c.noise * 10 ** rng.uniform(-2, 0)
  return np.clip(wave_S + noise, -1, 1).astype(np.float32)


def coloured(wave_S: np.ndarray, decibels_n: np.ndarray) -> np.ndarray:
  """Each of n frequencies, evenly spread from 0 to half the rate, louder by as much; those between them in between."""
  spectrum = np.fft.rfft(wave_S, n := 1 << (len(wave_S) - 1).bit_length())
  at = np.linspace(0, len(decibels_n) - 1, len(spectrum))
  curve = 10 ** (np.interp(at, np.arange(len(decibels_n)), decibels_n) / 20)
  return np.fft.irfft(spectrum * curve, n)[: len(wave_S)]


def resampled(wave_S: np.ndarray, factor: float) -> np.ndarray:
  """Read `factor` times faster: shorter and higher; linear interpolation."""
  samples = max(1, round(len(wave_S) / factor))
  return np.interp(
    np.linspace(0, len(wave_S) - 1, samples), np.arange(len(wave_S)), wave_S
  )


def stretched(wave_S: np.ndarray, factor: float, *, window: int) -> np.ndarray:
  """`factor` times as long at the same pitch: overlapping pieces, each put where it fits its neighbour best.

  WSOLA (Verhelst and Roelands 1993): a piece starts within a quarter of a window of where it should, where it
  correlates most with the natural continuation of the piece before.
  """
  hop, search = window // 2, window // 4
  samples = max(1, round(len(wave_S) * factor))
  if len(wave_S) < window + 2 * search or abs(factor - 1) < 1e-3:
    return (
      wave_S[:samples] if factor <= 1 else np.pad(wave_S, (0, samples - len(wave_S)))
    )
  pieces = -(-samples // hop) + 1
  padded = np.pad(wave_S, (search, window + hop + search))
  ramp = np.hanning(window + 1)[:window]
  out = np.zeros(pieces * hop + window)
  start = search  # of the last piece, in `padded`
  out[:window] = padded[start : start + window] * ramp
  last = len(padded) - window - hop
  for k in range(1, pieces):
    follows = padded[start + hop : start + hop + window]
    ideal = min(search + round(k * hop / factor), last - search)
    fits = np.correlate(
      padded[ideal - search : ideal + search + window], follows, mode='valid'
    )
    start = ideal - search + int(fits.argmax())
    out[k * hop : k * hop + window] += padded[start : start + window] * ramp
  out[:hop] += padded[search : search + hop] * (
    1 - ramp[:hop]
  )  # the first piece has no neighbour to fade in over
  return out[:samples]
