"""The embedded data: real splits, examples drawn by their index, recipes that say what they are called."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from samples import hosts_of, tiny_run

from omni_jax.config import budget_of
from omni_jax.data.making import prepare
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
from omni_jax.model import ModelConfig
from omni_jax.sequence.pack import Packer

CONFIG = SimpleNamespace(voices=2, takes=2, rate=8000, seconds=0.96)
SAMPLES = 7680
KINDS = {'image': 'image', 'speech': 'audio', 'text': 'text'}
RECIPES = [f'{a}_to_{b}' for a in INPUTS for b in OUTPUTS]


@pytest.fixture(scope='module')
def digits():
  return load_digits(CONFIG)


def drawn(digits, recipe, n=20, seed=0):
  examples = DigitExamples(digits, {recipe: 1.0}, seed=seed)
  return [examples[i] for i in range(n)]


def test_images_of_training_and_test_are_different_and_whole(digits):
  train, test = (
    {image.tobytes() for image in images}
    for images in (digits.train_images, digits.test_images)
  )
  assert not train & test
  assert len(digits.train_images) + len(digits.test_images) == 1797
  assert (
    digits.train_images.shape[1:] == (8, 8, 1)
    and digits.train_images.dtype == np.float32
  )
  assert digits.train_images.min() == 0 and digits.train_images.max() == 1
  assert set(digits.train_labels) == set(digits.test_labels) == set(range(10))


def test_voices_of_training_and_test_are_different(digits):
  assert {clip.voice for clip in digits.train_clips} == set(TRAIN_VARIANTS[:2])
  assert {clip.voice for clip in digits.test_clips} == set(HELDOUT_VARIANTS)
  assert not set(TRAIN_VARIANTS) & set(HELDOUT_VARIANTS)
  assert len(digits.train_clips) == 2 * 2 * 40
  taken = {(clip.rate_wpm, clip.pitch) for clip in digits.take_clips}
  assert not taken & {(clip.rate_wpm, clip.pitch) for clip in digits.train_clips}


@pytest.mark.parametrize('recipe', RECIPES)
def test_a_recipe_gives_what_its_name_says(digits, recipe):
  given, _, wanted = recipe.partition('_to_')
  for example in drawn(digits, recipe):
    user, assistant = example['messages']
    assert [part['type'] for part in user['content']] == [KINDS[given]]
    assert [part['type'] for part in assistant['content']] == [KINDS[wanted]]
    assert (
      assistant['task'] == {'text': 'write', 'image': 'draw', 'speech': 'speak'}[wanted]
    )
    assert assistant['language'] in LANGUAGES and ('voice' in assistant) == (
      wanted == 'speech' and given != 'speech'
    )


def digit_of(word):
  return {
    digit
    for words in DIGIT_WORDS.values()
    for digit, known in enumerate(words)
    if known == word
  }


def test_the_answer_is_the_same_digit_in_the_language_asked_for(digits):
  pixels = {
    image.tobytes(): label
    for image, label in zip(digits.train_images, digits.train_labels, strict=True)
  }
  clips = {clip.wave.tobytes(): clip for clip in digits.train_clips}
  for example in drawn(digits, 'text_to_image'):
    asked, answered = (message['content'][0] for message in example['messages'])
    assert pixels[answered['pixels'].tobytes()] in digit_of(asked['text'])
  for example in drawn(digits, 'text_to_speech'):
    asked, answered = (message['content'][0] for message in example['messages'])
    clip = clips[answered['wave'].tobytes()]
    assert clip.digit in digit_of(asked['text'])
    assert (clip.language, clip.voice) == (
      example['messages'][1]['language'],
      example['messages'][1]['voice'],
    )
  for example in drawn(digits, 'text_to_text'):
    asked, answered = (message['content'][0]['text'] for message in example['messages'])
    language = example['messages'][1]['language']
    assert answered in DIGIT_WORDS[language] and digit_of(asked) & digit_of(answered)


def test_a_reply_is_text_then_image_then_speech(digits):
  for example in drawn(digits, 'reply', 6):
    assert [part['type'] for part in example['messages'][1]['content']] == [
      'text',
      'image',
      'audio',
    ]


def test_examples_depend_on_index_and_seed_only(digits):
  several = DigitExamples(digits, dict.fromkeys(RECIPES, 1.0), seed=0)
  ids = lambda n, seed: str(
    DigitExamples(digits, dict.fromkeys(RECIPES, 1.0), seed=seed)[n]
  )
  assert ids(5, 0) == str(several[5]) != str(several[6]) and ids(5, 1) != ids(5, 0)
  assert several[5]['id'] == 'digits/5' and len(several) > 10**6


def test_the_identity_changes_with_all_that_examples_are_made_of(digits):
  same = [
    DigitExamples(digits, {'image_to_text': 1.0}, seed=0).identity() for _ in range(2)
  ]
  louder = dataclasses.replace(
    digits,
    train_clips=[
      dataclasses.replace(digits.train_clips[0], wave=2 * digits.train_clips[0].wave),
      *digits.train_clips[1:],
    ],
  )
  others = [
    DigitExamples(digits, {'image_to_text': 1.0}, seed=1),
    DigitExamples(digits, {'image_to_image': 1.0}, seed=0),
    DigitExamples(digits, {'image_to_text': 1.0}, seed=0, spoken_takes=2),
    DigitExamples(louder, {'image_to_text': 1.0}, seed=0),
  ]
  assert (
    same[0] == same[1] and len({same[0], *(other.identity() for other in others)}) == 5
  )


def test_recipes_are_drawn_in_proportion(digits):
  examples = DigitExamples(digits, {'image_to_text': 3.0, 'text_to_image': 1.0}, seed=0)
  share = np.mean([examples[i]['messages'][1]['task'] == 'write' for i in range(300)])
  assert 0.67 < share < 0.83


@pytest.mark.parametrize(
  'recipes', [{}, {'image_to_smell': 1.0}, {'text': 1.0}], ids=str
)
def test_unknown_recipes_are_refused(digits, recipes):
  with pytest.raises(UserError, match='recipe'):
    DigitExamples(digits, recipes, seed=0)


def test_every_recipe_of_the_tiny_run_fits_its_rows():
  config = tiny_run()
  hosts = ModelConfig.from_config(config.model).hosts()
  budget = budget_of(config.data.budget)
  examples = training_examples(config.data, hosts)
  for i in range(60):
    assert Packer(budget, hosts).add(prepare(examples[i], hosts))


def test_the_codec_learns_from_training_voices_only():
  clips = training_payloads(tiny_run().data, hosts_of(), 'audio')
  assert len(clips) == 2 * 2 * 40 and all(0 < len(wave) <= SAMPLES for wave in clips)


def test_an_unknown_source_names_the_known_ones():
  config = tiny_run().data
  config.source = 'nothing'
  with pytest.raises(
    UserError,
    match=r"source='nothing' is unknown; it is one of \['array_record', 'barista', 'digits', 'emoji', 'fsdd', 'jsonl'",
  ):
    training_examples(config, hosts_of())
  config.source = 'jsonl'
  with pytest.raises(UserError, match=r'--config\.data\.root=DIR'):
    training_examples(config, hosts_of())
