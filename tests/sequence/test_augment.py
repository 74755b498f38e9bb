"""Augmentation changes read media slightly and leaves written media unchanged."""

import dataclasses

import numpy as np
import pytest
from samples import hosts_of

from omni_jax.modalities.audio.augment import (
  apply_tone,
  AudioAugment,
  augment_audio,
  time_stretch,
)
from omni_jax.modalities.image.augment import augment_image, ImageAugment
from omni_jax.sequence.augment import augment_example

HOSTS = hosts_of()
RATE = HOSTS['audio'].config.rate
LIMIT = HOSTS['audio'].config.samples
IMAGE = ImageAugment(turn=0.2, scale=0.12, shear=0.15, shift=0.075)
AUDIO = AudioAugment(speed=0.11, gain=3.0, noise=0.01, delay=0.05)


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
  """Returns a sine wave."""
  return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def variants(
  wave: np.ndarray, config: AudioAugment, rng: np.random.Generator, count: int
) -> list[np.ndarray]:
  """Returns random variations of a sound."""
  return [
    augment_audio(wave, config, rng, rate=RATE, limit=LIMIT) for _ in range(count)
  ]


def decibels(ratio: float) -> float:
  return 20 * np.log10(ratio)


def level(wave: np.ndarray, hertz: float) -> float:
  """Returns the level of a sound at a frequency, in dB."""
  spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave))))
  return decibels(spectrum[round(hertz * len(wave) / RATE)])


def pitch_of(wave: np.ndarray) -> float:
  """Returns the loudest frequency in the middle half of a sound, in Hz."""
  middle = wave[len(wave) // 4 : -len(wave) // 4]
  spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 15))
  return spectrum.argmax() * RATE / (1 << 15)


@pytest.mark.parametrize('channels', [1, 3])
def test_pictures_vary_and_stay_in_range(channels):
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(28, 28, channels)).astype(np.float32)
  pictures = [augment_image(image, IMAGE, rng) for _ in range(20)]
  for picture in pictures:
    assert picture.shape == image.shape
    assert picture.dtype == np.float32
    assert picture.min() >= 0 and picture.max() <= 1
  assert len({picture.tobytes() for picture in pictures}) == 20


def test_sounds_vary_and_stay_in_range():
  rng = np.random.default_rng(0)
  sounds = variants(0.9 * tone(300), dataclasses.replace(AUDIO, pitch=0.1), rng, 20)
  for sound in sounds:
    assert 0 < len(sound) <= LIMIT
    assert sound.dtype == np.float32
    assert np.abs(sound).max() <= 1
  assert len({len(sound) for sound in sounds}) > 10


def test_the_default_augmentation_changes_nothing():
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(8, 8, 1)).astype(np.float32)
  wave = tone(300).astype(np.float32)
  np.testing.assert_allclose(
    augment_image(image, ImageAugment(), rng), image, atol=1e-6
  )
  (sound,) = variants(wave, AudioAugment(), rng, 1)
  np.testing.assert_allclose(sound, wave, atol=1e-6)


@pytest.mark.parametrize('factor', [0.8, 0.93, 1.07, 1.3])
def test_stretching_keeps_the_pitch_and_the_level(factor):
  wave = tone(300)
  longer = time_stretch(wave, factor, window=320)
  assert len(longer) == round(len(wave) * factor)
  assert pitch_of(longer) == pytest.approx(300, rel=0.01)
  inner = slice(320, -320)
  assert np.sqrt(np.mean(longer[inner] ** 2)) == pytest.approx(np.sqrt(0.5), rel=0.05)


def test_speed_shifts_the_pitch_and_pitch_keeps_the_length():
  rng = np.random.default_rng(1)
  length = len(tone(300))
  for wave in variants(tone(300), AudioAugment(speed=0.2), rng, 10):
    assert pitch_of(wave) == pytest.approx(300 * length / len(wave), rel=0.02)
  pitches = []
  for wave in variants(tone(300), AudioAugment(pitch=0.2), rng, 10):
    assert len(wave) == pytest.approx(length, abs=2)
    pitches.append(pitch_of(wave))
  assert np.ptp(pitches) > 40


def test_gain_and_tone_are_decibels():
  rng = np.random.default_rng(2)
  soft = 0.01 * (tone(500) + tone(3500))
  loud = variants(soft, AudioAugment(gain=12.0), rng, 30)
  changes = [decibels(wave.std() / soft.std()) for wave in loud]
  assert -12 <= min(changes) < -6
  assert 6 < max(changes) <= 12
  tilts = []
  for wave in variants(soft, AudioAugment(tone=10.0), rng, 30):
    assert len(wave) == len(soft)
    tilts.append(level(wave, 500) - level(wave, 3500))
  assert min(tilts) < -5 and max(tilts) > 5
  assert max(np.abs(tilts)) <= 20
  # 6 dB at 0 Hz, 3 at 500, none from 1000 on.
  tilted = apply_tone(soft, np.array([6.0, 0.0, 0.0, 0.0, 0.0]))
  assert level(tilted, 500) - level(soft, 500) == pytest.approx(3, abs=0.2)
  assert level(tilted, 3500) == pytest.approx(level(soft, 3500), abs=0.1)


def test_a_sound_of_the_longest_length_is_sped_up_not_cut():
  """Its last samples, which are the only ones above zero, are kept."""
  full = np.concatenate([np.zeros(LIMIT - 80), np.ones(80)])
  for seed in range(20):
    rng = np.random.default_rng(seed)
    (sound,) = variants(full, AudioAugment(speed=0.2), rng, 1)
    assert len(sound) <= LIMIT
    assert sound[-20:].min() > 0.5


def test_only_media_of_users_change():
  rng = np.random.default_rng(0)
  part = {
    'type': 'image',
    'pixels': rng.uniform(size=(8, 8, 1)).astype(np.float32),
    'label': 'seven',
  }
  text = {'type': 'text', 'text': 'draw'}
  chat = {
    'id': 'a',
    'messages': [
      {'role': 'user', 'content': [part, text]},
      {'role': 'assistant', 'content': [part]},
    ],
  }
  user, assistant = augment_example(chat, {'image': IMAGE}, HOSTS, rng)['messages']
  image, question = user['content']
  assert (image['pixels'] != part['pixels']).any()
  assert image['label'] == 'seven'
  assert question is text
  assert assistant['content'][0] is part
  plain = {'id': 'b', 'content': [part]}
  assert augment_example(plain, {'image': IMAGE}, HOSTS, rng) is plain


def test_each_medium_changes_only_if_requested():
  """A medium that `strengths` does not name stays the same object."""
  image = {'type': 'image', 'pixels': np.full((8, 8, 1), 0.5, np.float32)}
  audio = {'type': 'audio', 'wave': 0.5 * tone(300).astype(np.float32)}
  chat = {'messages': [{'role': 'user', 'content': [image, audio]}]}
  for strengths in (
    {'image': IMAGE},
    {'audio': AUDIO},
    {'image': IMAGE, 'audio': AUDIO},
    {},
  ):
    rng = np.random.default_rng(0)
    (message,) = augment_example(chat, strengths, HOSTS, rng)['messages']
    after_image, after_audio = message['content']
    assert (after_image is not image) == ('image' in strengths)
    assert (after_audio is not audio) == ('audio' in strengths)


def test_a_sound_is_never_longer_than_the_longest_clip():
  rng = np.random.default_rng(0)
  longest = np.ones(LIMIT, np.float32)
  slow = AudioAugment(speed=0.5, delay=1.0)
  lengths = [len(HOSTS['audio'].augment(longest, slow, rng)) for _ in range(20)]
  assert max(lengths) == LIMIT
  assert min(lengths) < LIMIT
