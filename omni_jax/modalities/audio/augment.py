"""Augmentation of sounds that are only heard: random changes of a wave, on the fly."""

import dataclasses

import numpy as np

TONES = 5  # frequency bands whose loudness is changed
WINDOW_SECONDS = 0.04  # length of the segments that `time_stretch` adds up


@dataclasses.dataclass(frozen=True)
class AudioAugment:
  """Strengths of the changes to sounds.

  For each sound, every change is drawn uniformly between -value and +value, except
  where noted; 0 turns it off.

  Attributes:
    speed: change of tempo and pitch together, as a share of them: like a tape that runs
      faster or slower (Ko et al. 2015).
    pitch: change of pitch at the same tempo, as a share of the frequency.
    gain: change of the overall loudness, in decibels.
    tone: change of the loudness of each of TONES overlapping bands, in decibels, like
      that of rooms and microphones.
    noise: largest standard deviation of white noise (full scale is 1); the deviation is
      drawn log-uniformly between a hundredth of it and all of it.
    delay: longest silence in front, in seconds, drawn between 0 and it.
  """

  speed: float = 0.0
  pitch: float = 0.0
  gain: float = 0.0
  tone: float = 0.0
  noise: float = 0.0
  delay: float = 0.0


def augment_audio(
  wave_S: np.ndarray,
  c: AudioAugment,
  rng: np.random.Generator,
  *,
  rate: int,
  limit: int,
) -> np.ndarray:
  """Returns a randomly changed copy of a wave, float32 in [-1, 1].

  Args:
    rate: samples per second.
    limit: largest number of samples of the copy.
  """
  speed = 1 + rng.uniform(-c.speed, c.speed)
  pitch = 1 + rng.uniform(-c.pitch, c.pitch)
  speed = max(speed, len(wave_S) / limit)
  wave_S = resampled(wave_S, speed * pitch)
  wave_S = time_stretch(wave_S, pitch, window=round(WINDOW_SECONDS * rate))[:limit]
  delay = int(rng.uniform(0, c.delay) * rate)
  delay = min(delay, limit - len(wave_S))
  gain = rng.uniform(-c.gain, c.gain)
  wave_S = np.pad(wave_S, (delay, 0)) * 10 ** (gain / 20)
  if c.tone:
    wave_S = apply_tone(wave_S, rng.uniform(-c.tone, c.tone, TONES))
  wave_S = wave_S / max(1.0, np.abs(wave_S).max())
  noise_S = rng.standard_normal(len(wave_S)) * c.noise * 10 ** rng.uniform(-2, 0)
  return np.clip(wave_S + noise_S, -1, 1).astype(np.float32)


def apply_tone(wave_S: np.ndarray, decibels_n: np.ndarray) -> np.ndarray:
  """Returns the wave with each of n frequencies made louder by some decibels.

  The frequencies are evenly spaced from 0 to half the sample rate; between them the
  decibels are interpolated.
  """
  bands = len(decibels_n)
  samples = 1 << (len(wave_S) - 1).bit_length()
  spectrum = np.fft.rfft(wave_S, samples)
  at = np.linspace(0, bands - 1, len(spectrum))
  curve = 10 ** (np.interp(at, np.arange(bands), decibels_n) / 20)
  return np.fft.irfft(spectrum * curve, samples)[: len(wave_S)]


def resampled(wave_S: np.ndarray, factor: float) -> np.ndarray:
  """Returns the wave read `factor` times as fast, by linear interpolation.

  Above 1 it becomes shorter and higher.
  """
  samples = max(1, round(len(wave_S) / factor))
  at = np.linspace(0, len(wave_S) - 1, samples)
  return np.interp(at, np.arange(len(wave_S)), wave_S)


def time_stretch(wave_S: np.ndarray, factor: float, *, window: int) -> np.ndarray:
  """Returns the wave `factor` times as long, at the same pitch.

  WSOLA (Verhelst and Roelands 1993): overlapping segments are added up. A segment is
  taken within a quarter of a window of its ideal position, where it correlates best
  with the natural continuation of the segment before it.

  Args:
    window: samples of a segment.
  """
  hop = window // 2
  search = window // 4
  samples = max(1, round(len(wave_S) * factor))
  if len(wave_S) < window + 2 * search or abs(factor - 1) < 1e-3:
    missing = max(0, samples - len(wave_S))
    return np.pad(wave_S, (0, missing))[:samples]
  segments = -(-samples // hop) + 1
  padded = np.pad(wave_S, (search, window + hop + search))
  ramp = np.hanning(window + 1)[:window]
  out = np.zeros(segments * hop + window)
  start = search  # in `padded`, of the segment added last
  out[:window] = padded[start : start + window] * ramp
  last = len(padded) - window - hop
  for k in range(1, segments):
    continuation = padded[start + hop : start + hop + window]
    ideal = min(search + round(k * hop / factor), last - search)
    nearby = padded[ideal - search : ideal + search + window]
    correlations = np.correlate(nearby, continuation, mode='valid')
    start = ideal - search + int(correlations.argmax())
    out[k * hop : k * hop + window] += padded[start : start + window] * ramp
  # Nothing precedes the first segment, so it must not fade in.
  out[:hop] += padded[search : search + hop] * (1 - ramp[:hop])
  return out[:samples]
