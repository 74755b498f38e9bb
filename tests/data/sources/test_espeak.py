"""Tests synthesised speech.

It is deterministic, in range and short enough, and what it cannot speak is an error.
"""

import itertools
import sys
import time

import numpy as np
import pytest

from omni_jax.data.sources import espeak
from omni_jax.errors import UserError

pytest.importorskip(
  'espeakng_loader', reason="speech synthesis is optional: pip install 'omni_jax[demo]'"
)


def say(text='seven', **changes):
  arguments = dict(language='en', variant='f1', rate_wpm=160, pitch=50) | changes
  return espeak.synthesize(text, **arguments)


def test_a_wave_has_the_level_the_length_and_the_rate_of_speech():
  wave = say()
  assert wave.dtype == np.float32
  assert wave.ndim == 1
  assert np.abs(wave).max() <= 1
  assert 0.05 < np.sqrt(np.mean(wave**2)) <= 0.1001
  assert 0.2 < len(wave) / 8000 < 0.9
  assert abs(len(say(sample_rate=16000)) / 2 - len(wave)) < 400


def test_a_clip_does_not_depend_on_earlier_clips():
  first = say()
  say('acht', language='de', variant='m3', pitch=20)
  np.testing.assert_array_equal(say(), first)


def test_breath_noise_does_not_depend_on_the_clock():
  """eSpeak takes the seed from the time in seconds, for Reed from C's rand."""
  for variant in ('f2', 'Reed'):
    first = say('zero', variant=variant)
    time.sleep(1.1)
    np.testing.assert_array_equal(say('zero', variant=variant), first)


def test_arguments_change_the_speech():
  assert len(say(rate_wpm=240)) < 0.8 * len(say(rate_wpm=140))
  for changes in (dict(pitch=80), dict(variant='m3'), dict(language='fr')):
    other = say(**changes)
    n = min(len(other), len(say()))
    assert np.abs(other[:n] - say()[:n]).max() > 0.05, changes


@pytest.mark.parametrize(
  'changes', [dict(variant='nobody'), dict(language='xx')], ids=str
)
def test_an_unknown_voice_or_language_is_refused(changes):
  with pytest.raises(UserError, match='no voice'):
    say(**changes)


def test_curated_voices_exist_and_do_not_overlap():
  train = set(espeak.TRAIN_VARIANTS)
  held_out = set(espeak.HELDOUT_VARIANTS)
  assert train | held_out <= set(espeak.variants())
  assert not train & held_out


def test_corpus_covers_the_grid_and_fits():
  voices = ('m1', 'Annie')
  languages = ('en', 'es')
  takes = ((90, 50), (185, 40))
  clips = espeak.corpus(voices, takes, languages, sample_rate=8000, seconds=0.6)
  grid = itertools.product(voices, (50, 40), languages, range(10))
  assert [(c.voice, c.pitch, c.language, c.digit) for c in clips] == list(grid)
  assert max(len(clip.wave) for clip in clips) <= 0.6 * 8000
  assert max(clip.rate_wpm for clip in clips[:10]) > 90  # spoken again, faster


def test_the_error_of_a_missing_package_names_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'espeakng_loader', None)
  with pytest.raises(UserError, match='pip install'):
    say()
