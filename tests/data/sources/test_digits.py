"""Tests the embedded data.

Splits are real, examples are built from their index, and recipes do what their names
say.
"""

import dataclasses
import functools
from types import SimpleNamespace

import numpy as np
import pytest
from samples import hosts_of, tiny_run

from omni_jax.config import budget_of
from omni_jax.data.example_maker import prepare
from omni_jax.data.sources.digits import (
  DigitExamples,
  INPUTS,
  LANGUAGES,
  load_digits,
  OUTPUTS,
)
from omni_jax.data.sources.espeak import DIGIT_WORDS, HELDOUT_VARIANTS, TRAIN_VARIANTS
from omni_jax.data.sources.table import training_examples, training_payloads
from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import TASKS
from omni_jax.model import ModelConfig
from omni_jax.sequence.pack import Packer

CONFIG = SimpleNamespace(voices=2, takes=2, rate=8000, seconds=0.96)
SAMPLES = 7680  # of 0.96 s
# Voices, takes, and words: ten digits in four languages.
CLIPS = CONFIG.voices * CONFIG.takes * 40
KINDS = {'image': 'image', 'speech': 'audio', 'text': 'text'}
RECIPES = [f'{a}_to_{b}' for a in INPUTS for b in OUTPUTS]
digit_examples = functools.partial(DigitExamples, spoken_takes=1)


@pytest.fixture(scope='module')
def digits():
  return load_digits(CONFIG)


def examples_of(digits, recipe, n=20, seed=0):
  """Returns the first n examples of a recipe."""
  examples = digit_examples(digits, {recipe: 1.0}, seed=seed)
  return [examples[i] for i in range(n)]


def test_images_of_training_and_test_are_different_and_complete(digits):
  images = digits.train_images
  train = {image.tobytes() for image in images}
  test = {image.tobytes() for image in digits.test_images}
  assert not train & test
  assert len(images) + len(digits.test_images) == 1797  # all that there are
  assert images.shape[1:] == (8, 8, 1)
  assert images.dtype == np.float32
  assert images.min() == 0
  assert images.max() == 1
  assert set(digits.train_labels) == set(digits.test_labels) == set(range(10))


def test_voices_of_training_and_test_are_different(digits):
  assert {clip.voice for clip in digits.train_clips} == set(TRAIN_VARIANTS[:2])
  assert {clip.voice for clip in digits.test_clips} == set(HELDOUT_VARIANTS)
  assert not set(TRAIN_VARIANTS) & set(HELDOUT_VARIANTS)
  assert len(digits.train_clips) == CLIPS
  train_takes = {(clip.rate_wpm, clip.pitch) for clip in digits.train_clips}
  other_takes = {(clip.rate_wpm, clip.pitch) for clip in digits.take_clips}
  assert not train_takes & other_takes


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_gives_what_its_name_says(digits, recipe):
  source, _, target = recipe.partition('_to_')
  for example in examples_of(digits, recipe):
    user, assistant = example['messages']
    assert [part['type'] for part in user['content']] == [KINDS[source]]
    assert [part['type'] for part in assistant['content']] == [KINDS[target]]
    assert assistant['task'] == TASKS[KINDS[target]]
    assert assistant['language'] in LANGUAGES
    has_voice = target == 'speech' and source != 'speech'
    assert ('voice' in assistant) == has_voice


def digits_of(word):
  """Returns the digits that a word names in any of the languages."""
  digits = set()
  for words in DIGIT_WORDS.values():
    if word in words:
      digits.add(words.index(word))
  return digits


def test_the_answer_is_the_same_digit_in_the_requested_language(digits):
  labels = {}
  for image, label in zip(digits.train_images, digits.train_labels, strict=True):
    labels[image.tobytes()] = label
  clips = {clip.wave.tobytes(): clip for clip in digits.train_clips}
  for example in examples_of(digits, 'text_to_image'):
    user, assistant = example['messages']
    label = labels[assistant['content'][0]['pixels'].tobytes()]
    assert label in digits_of(user['content'][0]['text'])
  for example in examples_of(digits, 'text_to_speech'):
    user, assistant = example['messages']
    clip = clips[assistant['content'][0]['wave'].tobytes()]
    assert clip.digit in digits_of(user['content'][0]['text'])
    assert clip.language == assistant['language']
    assert clip.voice == assistant['voice']
  for example in examples_of(digits, 'text_to_text'):
    user, assistant = example['messages']
    question = user['content'][0]['text']
    answer = assistant['content'][0]['text']
    assert answer in DIGIT_WORDS[assistant['language']]
    assert digits_of(question) & digits_of(answer)


def test_a_reply_is_text_then_image_then_speech(digits):
  for example in examples_of(digits, 'reply', 6):
    assert [part['type'] for part in example['messages'][1]['content']] == [
      'text',
      'image',
      'audio',
    ]


def test_examples_depend_on_index_and_seed_only(digits):
  recipes = dict.fromkeys(RECIPES, 1.0)
  examples = digit_examples(digits, recipes, seed=0)
  again = digit_examples(digits, recipes, seed=0)
  other = digit_examples(digits, recipes, seed=1)
  assert str(again[5]) == str(examples[5])
  assert str(examples[6]) != str(examples[5])
  assert str(other[5]) != str(examples[5])
  assert examples[5]['id'] == 'digits/5'
  assert len(examples) > 10**6


def test_the_identity_changes_with_everything_that_examples_depend_on(digits):
  clip = digits.train_clips[0]
  louder_clip = dataclasses.replace(clip, wave=2 * clip.wave)
  clips = [louder_clip, *digits.train_clips[1:]]
  louder = dataclasses.replace(digits, train_clips=clips)
  variants = [
    digit_examples(digits, {'image_to_text': 1.0}, seed=0),
    digit_examples(digits, {'image_to_text': 1.0}, seed=1),
    digit_examples(digits, {'image_to_image': 1.0}, seed=0),
    digit_examples(digits, {'image_to_text': 1.0}, seed=0, spoken_takes=2),
    digit_examples(louder, {'image_to_text': 1.0}, seed=0),
  ]
  again = digit_examples(digits, {'image_to_text': 1.0}, seed=0)
  assert again.identity() == variants[0].identity()
  assert len({variant.identity() for variant in variants}) == 5


def test_recipes_are_drawn_in_proportion(digits):
  examples = digit_examples(
    digits, {'image_to_text': 3.0, 'text_to_image': 1.0}, seed=0
  )
  tasks = [examples[i]['messages'][1]['task'] for i in range(300)]
  assert 0.67 < tasks.count('write') / 300 < 0.83


@pytest.mark.parametrize(
  'recipes', [{}, {'image_to_smell': 1.0}, {'text': 1.0}], ids=str
)
def test_unknown_recipes_are_refused(digits, recipes):
  with pytest.raises(UserError, match='recipe'):
    digit_examples(digits, recipes, seed=0)


def test_every_recipe_of_the_tiny_run_fits_its_rows():
  config = tiny_run()
  hosts = ModelConfig.from_config(config.model).hosts()
  budget = budget_of(config.data.budget)
  examples = training_examples(config.data, hosts)
  for i in range(60):
    assert Packer(budget, hosts).add(prepare(examples[i], hosts))


def test_the_codec_learns_from_training_voices_only():
  clips = training_payloads(tiny_run().data, hosts_of(), 'audio')
  assert len(clips) == CLIPS
  assert all(0 < len(wave) <= SAMPLES for wave in clips)


def test_the_error_of_an_unknown_source_names_the_known_ones():
  config = tiny_run().data
  config.source = 'nothing'
  known = r"\['array_record', 'barista', 'digits', 'emoji', 'fsdd', 'jsonl'"
  message = f"source='nothing' is unknown; it is one of {known}"
  with pytest.raises(UserError, match=message):
    training_examples(config, hosts_of())


def test_the_error_of_a_source_without_a_folder_names_the_flag():
  config = tiny_run().data
  config.source = 'jsonl'
  with pytest.raises(UserError, match=r'--config\.data\.root=DIR'):
    training_examples(config, hosts_of())
