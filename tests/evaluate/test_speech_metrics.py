"""Checks features and distances of waves against cases worked out by hand."""

import numpy as np
import pytest

from omni_jax.evaluate.metrics import features, speech_metrics
from omni_jax.evaluate.tasks import codec_scores

RATE = 8000


def tone(hertz, seconds=0.5, level=0.5):
  time = np.arange(round(seconds * RATE)) / RATE
  wave = level * np.sin(2 * np.pi * hertz * time)
  return wave.astype(np.float32)


def mel_of(wave):
  """Returns the log-mel of one frame in the middle of a wave."""
  return features.log_mel(wave, rate=RATE)[20]


def test_mel_of_a_tone_peaks_at_its_band_and_higher_tones_in_higher_bands():
  peaks = [mel_of(tone(hertz)).argmax() for hertz in (300, 1000, 2000, 3500)]
  assert peaks == sorted(set(peaks))


def test_half_the_level_lowers_the_log_mel_by_log_two():
  loud = mel_of(tone(1000, level=0.8)).max()
  soft = mel_of(tone(1000, level=0.4)).max()
  assert loud - soft == pytest.approx(np.log(2), abs=0.03)


def test_trim_cuts_silence_and_keeps_silent_clips():
  word = tone(500)
  padded = np.concatenate([np.zeros(1600), word, np.zeros(2400)])
  assert abs(len(features.trim(padded, rate=RATE)) - len(word)) <= 160
  assert len(features.trim(np.zeros(800), rate=RATE)) == 800
  assert len(features.trim(np.zeros(3), rate=RATE)) == 3


def test_stretch_keeps_ends_and_interpolates():
  stretched = features.stretch(np.array([[0.0], [1.0]]), 5)
  assert stretched[:, 0] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_mel_distance_is_zero_only_for_the_same_wave():
  assert speech_metrics.mel_distance(tone(500), tone(500), rate=RATE) == 0
  assert speech_metrics.mel_distance(tone(500), tone(1500), rate=RATE) > 0.2


def test_warped_mel_distance_forgives_pauses():
  late = np.concatenate([np.zeros(1600, np.float32), tone(500)])
  assert speech_metrics.warped_mel_distance(tone(500), late, rate=RATE) < 0.25
  assert speech_metrics.mel_distance(tone(500), late, rate=RATE) > 0.25


def test_si_snr_of_known_noise():
  rng = np.random.default_rng(0)
  reference, noise = rng.normal(size=(2, 100_000))
  wave = 3 * (reference + 0.1 * noise)
  assert speech_metrics.si_snr(reference, wave) == pytest.approx(20, abs=0.2)


def test_stoi_falls_with_noise_and_is_unknown_for_silence():
  rng = np.random.default_rng(0)
  words = [rng.normal(size=4000) * np.repeat(rng.random(40), 100) for _ in range(8)]
  noisy = [word + rng.normal(size=4000) for word in words]
  assert speech_metrics.stoi(words, words, rate=RATE) == pytest.approx(1, abs=1e-3)
  assert speech_metrics.stoi(words, noisy, rate=RATE) < 0.8
  assert speech_metrics.stoi([np.zeros(400)], [np.zeros(400)], rate=RATE) is None


def test_perplexity_of_uniform_codes_is_their_number_and_of_one_code_one():
  codes = np.stack([np.arange(64) % 16, np.zeros(64, int), np.arange(64) % 2], axis=1)
  assert codec_scores.perplexity(codes) == pytest.approx([16, 1, 2])


@pytest.mark.parametrize('hertz', [90, 130, 220, 380])
def test_pitch_of_a_voice_with_overtones(hertz):
  """The fundamental is found, neither an overtone nor an octave.

  The voice is a pulse train through a decay, as a larynx produces it, with some noise.
  """
  pulses = np.zeros(RATE // 2)
  pulses[np.arange(0, len(pulses), RATE / hertz).astype(int)] = 1
  time = np.arange(60)
  decay = np.exp(-time / 8) * np.cos(time * 0.5)
  voice = np.convolve(pulses, decay)[: len(pulses)]
  voice += 0.02 * np.random.default_rng(0).standard_normal(len(voice))
  assert speech_metrics.pitch(voice, rate=RATE) == pytest.approx(hertz, rel=0.04)


def test_noise_and_silence_have_no_pitch():
  noise = np.random.default_rng(0).standard_normal(4000)
  assert speech_metrics.pitch(noise, rate=RATE) is None
  assert speech_metrics.pitch(np.zeros(4000), rate=RATE) is None
  assert speech_metrics.pitch(np.zeros(10), rate=RATE) is None
