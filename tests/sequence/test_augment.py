"""What is read is changed a little and stays what it is; what is to be written is not touched."""

import dataclasses

import numpy as np
import pytest
from samples import hosts_of

from omni_jax.modalities.audio.augment import AudioAugment, coloured, stretched, varied
from omni_jax.modalities.image.augment import ImageAugment, moved
from omni_jax.sequence.augment import augmented

HOSTS = hosts_of()
RATE, LIMIT = HOSTS['audio'].config.rate, HOSTS['audio'].config.samples
IMAGE = ImageAugment(turn=0.2, scale=0.12, shear=0.15, shift=0.075)
AUDIO = AudioAugment(speed=0.11, gain=3.0, noise=0.01, delay=0.05)


def tone(hertz: float, seconds: float = 0.5) -> np.ndarray:
  return np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)


def pitch_of(wave: np.ndarray) -> float:
  middle = wave[len(wave) // 4 : -len(wave) // 4]
  spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle)), 1 << 15))
  return spectrum.argmax() * RATE / (1 << 15)


@pytest.mark.parametrize('channels', [1, 3])
def test_pictures_vary_and_stay_in_range(channels):
  rng = np.random.default_rng(0)
  image = rng.uniform(size=(28, 28, channels)).astype(np.float32)
  pictures = [moved(image, IMAGE, rng) for _ in range(20)]
  assert all(
    p.shape == image.shape and p.dtype == np.float32 and p.min() >= 0 and p.max() <= 1
    for p in pictures
  )
  assert len({p.tobytes() for p in pictures}) == 20


def test_sounds_vary_and_stay_in_range():
  rng = np.random.default_rng(0)
  sounds = [
    varied(
      0.9 * tone(300),
      dataclasses.replace(AUDIO, pitch=0.1),
      rng,
      rate=RATE,
      limit=LIMIT,
    )
    for _ in range(20)
  ]
  assert all(
    0 < len(s) <= LIMIT and s.dtype == np.float32 and np.abs(s).max() <= 1
    for s in sounds
  )
  assert len({len(s) for s in sounds}) > 10


def test_by_default_it_changes_nothing():
  rng = np.random.default_rng(0)
  image, wave = (
    rng.uniform(size=(8, 8, 1)).astype(np.float32),
    tone(300).astype(np.float32),
  )
  np.testing.assert_allclose(moved(image, ImageAugment(), rng), image, atol=1e-6)
  np.testing.assert_allclose(
    varied(wave, AudioAugment(), rng, rate=RATE, limit=LIMIT), wave, atol=1e-6
  )


@pytest.mark.parametrize('factor', [0.8, 0.93, 1.07, 1.3])
def test_stretching_keeps_the_pitch_and_the_level(factor):
  wave = tone(300)
  longer = stretched(wave, factor, window=320)
  assert len(longer) == round(len(wave) * factor)
  assert pitch_of(longer) == pytest.approx(300, rel=0.01)
  inner = slice(320, -320)
  assert np.sqrt(np.mean(longer[inner] ** 2)) == pytest.approx(np.sqrt(0.5), rel=0.05)


def test_speed_moves_the_pitch_and_pitch_leaves_the_length():
  rng = np.random.default_rng(1)
  fast = [
    varied(tone(300), AudioAugment(speed=0.2), rng, rate=RATE, limit=LIMIT)
    for _ in range(10)
  ]
  for wave in fast:
    assert pitch_of(wave) == pytest.approx(300 * 4000 / len(wave), rel=0.02)
  high = [
    varied(tone(300), AudioAugment(pitch=0.2), rng, rate=RATE, limit=LIMIT)
    for _ in range(10)
  ]
  assert all(len(wave) == pytest.approx(4000, abs=2) for wave in high)
  assert np.ptp([pitch_of(wave) for wave in high]) > 40


def test_gain_and_tone_are_decibels():
  rng = np.random.default_rng(2)
  soft = 0.01 * (tone(500) + tone(3500))
  level = lambda wave, hertz: (
    20
    * np.log10(
      np.abs(np.fft.rfft(wave * np.hanning(len(wave))))[round(hertz * len(wave) / RATE)]
    )
  )
  loud = [
    varied(soft, AudioAugment(gain=12.0), rng, rate=RATE, limit=LIMIT)
    for _ in range(30)
  ]
  changes = [20 * np.log10(wave.std() / soft.std()) for wave in loud]
  assert -12 <= min(changes) < -6 and 6 < max(changes) <= 12
  other = [
    varied(soft, AudioAugment(tone=10.0), rng, rate=RATE, limit=LIMIT)
    for _ in range(30)
  ]
  assert all(len(wave) == len(soft) for wave in other)
  tilts = [level(wave, 500) - level(wave, 3500) for wave in other]
  assert min(tilts) < -5 and max(tilts) > 5 and max(np.abs(tilts)) <= 20
  half = coloured(
    soft, np.array([6.0, 0.0, 0.0, 0.0, 0.0])
  )  # 6 dB at 0 Hz, 3 at 500, none from 1000 on
  assert level(half, 500) - level(soft, 500) == pytest.approx(3, abs=0.2)
  assert level(half, 3500) == pytest.approx(level(soft, 3500), abs=0.1)


def test_a_sound_of_the_longest_length_is_hurried_not_cut():
  full = np.concatenate([np.zeros(LIMIT - 80), np.ones(80)])
  for seed in range(20):
    heard = varied(
      full, AudioAugment(speed=0.2), np.random.default_rng(seed), rate=RATE, limit=LIMIT
    )
    assert len(heard) <= LIMIT and heard[-20:].min() > 0.5


def test_only_what_users_show_changes():
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
  user, assistant = augmented(chat, {'image': IMAGE}, HOSTS, rng)['messages']
  shown = user['content'][0]
  assert (shown['pixels'] != part['pixels']).any() and shown['label'] == 'seven'
  assert user['content'][1] is text and assistant['content'][0] is part
  plain = {'id': 'b', 'content': [part]}
  assert augmented(plain, {'image': IMAGE}, HOSTS, rng) is plain


def test_each_medium_changes_as_it_is_asked_to():
  """A medium without a row in `changes` stays the same object."""
  image = {'type': 'image', 'pixels': np.full((8, 8, 1), 0.5, np.float32)}
  audio = {'type': 'audio', 'wave': 0.5 * tone(300).astype(np.float32)}
  chat = {'messages': [{'role': 'user', 'content': [image, audio]}]}
  for changes, changed in (
    ({'image': IMAGE}, [True, False]),
    ({'audio': AUDIO}, [False, True]),
    ({'image': IMAGE, 'audio': AUDIO}, [True, True]),
    ({}, [False, False]),
  ):
    rng = np.random.default_rng(0)
    (message,) = augmented(chat, changes, HOSTS, rng)['messages']
    parts = zip(message['content'], (image, audio), strict=True)
    assert [ours is not theirs for ours, theirs in parts] == changed


def test_a_sound_of_the_run_stays_within_its_longest_clip():
  rng = np.random.default_rng(0)
  longest = np.ones(LIMIT, np.float32)
  slow = AudioAugment(speed=0.5, delay=1.0)
  lengths = [len(HOSTS['audio'].augmented(longest, slow, rng)) for _ in range(20)]
  assert max(lengths) == LIMIT > min(lengths)
