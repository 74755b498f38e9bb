"""Judges are right on real data, and compare a cascade through text with the model."""

import numpy as np
import pytest

from omni_jax.evaluate import cascade, judges


def test_image_judge_is_right_on_real_test_digits(digits):
  judge = judges.ImageJudge(digits.train_images, digits.train_labels)
  right = np.equal(judge(digits.test_images), digits.test_labels)
  assert right.mean() >= 0.98
  assert judge([np.zeros((9, 9, 1))]) == [-1]


def test_speech_judge_hears_words_and_voices_of_another_take(digits):
  judge = judges.SpeechJudge(digits.train_clips, rate=8000)
  judgements = judge([clip.wave for clip in digits.take_clips])
  for name, values in judgements._asdict().items():
    true = [getattr(clip, name) for clip in digits.take_clips]
    assert np.mean([a == b for a, b in zip(values, true, strict=True)]) > 0.95
  # Silence and rubbish are judged like anything else.
  assert len(judge([np.zeros(0), np.full(50, np.nan)]).digit) == 2


def test_a_cascade_keeps_the_word_and_loses_the_voice(make_fake):
  """The stand-in speaks in the voice that it hears, or in the one that is named."""
  trained = make_fake()
  # A codec that loses nothing.
  trained.encode_payloads = lambda name, items: list(items)
  trained.decode_payloads = lambda name, items: list(items)
  scores = cascade.compare(trained, n=40, seed=0)
  assert scores['codec alone']['pitch correlation'] == pytest.approx(1)
  assert scores['direct']['digit'] == scores['cascade']['digit'] == 1
  assert scores['direct']['voice'] == 1 > scores['cascade']['voice']
