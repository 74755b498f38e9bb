"""Prompts are balanced and ask for what the directions are defined to be."""

from collections import Counter

import numpy as np
import pytest

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.evaluate.tasks import prompts
from omni_jax.evaluate.tasks.prompts import Direction, DIRECTIONS, Material


@pytest.fixture(scope='module')
def material(digits):
  return Material(
    DIGIT_WORDS,
    digits.test_images,
    digits.test_labels,
    digits.test_clips,
    digits.take_clips,
  )


def main(direction, material, n=120):
  return [
    p for p in prompts.build(direction, material, n=n, seed=0) if p.group == 'main'
  ]


@pytest.mark.parametrize('direction', DIRECTIONS, ids=lambda d: d.name)
def test_every_digit_and_language_is_asked_equally_often(direction, material):
  asked = main(direction, material)
  assert set(Counter(p.digit for p in asked).values()) == {12}
  if direction.target != 'image':
    counts = Counter(p.language for p in asked)
    assert len(counts) == 4 and min(counts.values()) >= 20


@pytest.mark.parametrize('direction', DIRECTIONS, ids=lambda d: d.name)
def test_the_assistants_turn_is_open(direction, material):
  for prompt in prompts.build(direction, material, n=20, seed=0):
    user, assistant = prompt.example['messages']
    assert user['content'] == [prompt.source] and assistant['content'] == []
    assert assistant['task'] == prompts.TASK[direction.target]


def test_translation_asks_for_another_language(material):
  for prompt in main(Direction('text', 'text'), material):
    assert DIGIT_WORDS[prompt.language][prompt.digit] != prompt.source[
      'text'
    ] or prompt.source['text'] in ('six',)


def test_speech_to_speech_expects_the_voice_it_hears_and_does_not_name_it(material):
  for prompt in main(Direction('speech', 'speech'), material):
    assert prompt.voice in material.voices
    assert 'voice' not in prompt.example['messages'][-1]


def test_other_speech_names_its_voice(material):
  for prompt in main(Direction('image', 'speech'), material):
    assert prompt.example['messages'][-1]['voice'] == prompt.voice != ''


def test_speech_comes_from_unseen_voices_and_again_from_known_ones(material):
  asked = prompts.build(Direction('speech', 'text'), material, n=40, seed=0)
  assert Counter(p.group for p in asked) == {'main': 40, 'known_voices': 20}
  unseen = {clip.wave.tobytes() for clip in material.unseen_voices}
  assert all(
    (p.source['wave'].tobytes() in unseen) == (p.group == 'main') for p in asked
  )


def test_same_seed_same_prompts(material):
  a, b, c = (
    prompts.build(Direction('image', 'text'), material, n=30, seed=seed)
    for seed in (1, 1, 2)
  )
  same = [
    np.array_equal(x.source['pixels'], y.source['pixels'])
    for x, y in zip(a, b, strict=True)
  ]
  other = [
    np.array_equal(x.source['pixels'], y.source['pixels'])
    for x, y in zip(a, c, strict=True)
  ]
  assert all(same) and not all(other)
