"""Prompts are balanced, and request what the directions are defined to request."""

from collections import Counter

import numpy as np
import pytest

from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.evaluate.tasks import prompts
from omni_jax.evaluate.tasks.prompts import Direction, DIRECTIONS, material_of
from omni_jax.modalities.text.tokenizer import TASKS


@pytest.fixture(scope='module')
def material(digits):
  return material_of(digits)


def main_prompts(direction, material, n=120):
  all_prompts = prompts.build(direction, material, n=n, seed=0)
  return [prompt for prompt in all_prompts if prompt.group == 'main']


@pytest.mark.parametrize('direction', DIRECTIONS, ids=lambda d: d.name)
def test_every_digit_and_language_is_requested_equally_often(direction, material):
  requested = main_prompts(direction, material)
  digits = Counter(prompt.digit for prompt in requested)
  assert set(digits.values()) == {12}  # of 120 prompts
  if direction.target != 'image':
    languages = Counter(prompt.language for prompt in requested)
    assert len(languages) == 4
    assert min(languages.values()) >= 20


@pytest.mark.parametrize('direction', DIRECTIONS, ids=lambda d: d.name)
def test_the_assistants_turn_is_empty(direction, material):
  for prompt in prompts.build(direction, material, n=20, seed=0):
    user, assistant = prompt.example['messages']
    assert user['content'] == [prompt.source]
    assert assistant['content'] == []
    assert assistant['task'] == TASKS[prompts.WANT[direction.target]]


def test_translation_requests_another_language(material):
  for prompt in main_prompts(Direction('text', 'text'), material):
    question = prompt.source['text']
    requested = DIGIT_WORDS[prompt.language][prompt.digit]
    assert requested != question or question == 'six'  # both English and French


def test_speech_to_speech_expects_the_voice_it_hears_and_does_not_name_it(material):
  for prompt in main_prompts(Direction('speech', 'speech'), material):
    assert prompt.voice in material.voices
    assert 'voice' not in prompt.example['messages'][-1]


def test_other_speech_names_its_voice(material):
  for prompt in main_prompts(Direction('image', 'speech'), material):
    assert prompt.example['messages'][-1]['voice'] == prompt.voice != ''


def test_speech_comes_from_unseen_voices_and_again_from_known_ones(material):
  speech_prompts = prompts.build(Direction('speech', 'text'), material, n=40, seed=0)
  groups = Counter(prompt.group for prompt in speech_prompts)
  assert groups == {'main': 40, 'known_voices': 20}
  unseen = {clip.wave.tobytes() for clip in material.unseen_voices}
  for prompt in speech_prompts:
    is_unseen = prompt.source['wave'].tobytes() in unseen
    assert is_unseen == (prompt.group == 'main')


def test_the_seed_decides_the_prompts(material):
  def images(seed):
    direction = Direction('image', 'text')
    image_prompts = prompts.build(direction, material, n=30, seed=seed)
    return np.stack([prompt.source['pixels'] for prompt in image_prompts])

  first = images(1)
  np.testing.assert_array_equal(first, images(1))
  assert not np.array_equal(first, images(2))
