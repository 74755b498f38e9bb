"""A conversion refuses what a run could not take, for the reason the run would give."""

import pickle

from ml_collections import ConfigDict
import numpy as np
import pytest

from omni_jax.convert.conversion import convert_example
from omni_jax.convert.formats.reader import InputExample
from omni_jax.convert.run_check import RunCheck
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes


def config() -> ConfigDict:
  """Returns the parts of a run's config that a check reads."""
  model = dict(
    tokenizer=dict(languages=('en',), voices=('ann',), max_grid=4),
    image=dict(height=8, width=8, channels=1, patch=2),
    audio=dict(seconds=0.48),
  )
  streams = dict(
    image=dict(seen=(16, 1), drawn=(16, 1)), audio=dict(heard=(6, 2), spoken=(4, 2))
  )
  budget = dict(rows=2, length=40, streams=streams)
  return ConfigDict(dict(model=model, data=dict(budget=budget)))


def as_part(part: str | dict) -> dict:
  """Returns a part of a message; a str is its text."""
  return {'type': 'text', 'text': part} if isinstance(part, str) else part


def chat(*prompt: str | dict, answer: str | dict = 'ok', **controls: str) -> dict:
  """Returns an example of a prompt and an answer."""
  user = {'role': 'user', 'content': [as_part(part) for part in prompt]}
  assistant = {'role': 'assistant', **controls, 'content': [as_part(answer)]}
  return {'messages': [user, assistant]}


def picture() -> dict:
  return {'type': 'image', 'data': png_bytes(np.zeros((8, 8, 1)))}


def sound(seconds: float) -> dict:
  return {'type': 'audio', 'data': wav_bytes(np.zeros(round(8000 * seconds)), 8000)}


def refusal(example: dict, check: RunCheck | None) -> str:
  """Returns why an example is refused; '' if it is not."""
  return convert_example(InputExample('x', lambda: example), check).refusal


@pytest.mark.parametrize(
  'example',
  [
    chat('what?', language='en', voice='ann', task='write'),
    chat(picture()),
    chat('say', answer=sound(0.3)),
  ],
  ids=['text', 'image', 'audio'],
)
def test_a_check_does_not_change_the_record(example):
  check = pickle.loads(pickle.dumps(RunCheck.of(config())))
  input_example = InputExample('x', lambda: example)
  assert convert_example(input_example, check) == convert_example(input_example)
  assert not refusal(example, check)


@pytest.mark.parametrize(
  'example, reason',
  [
    (
      chat('a?', language='de'),
      "no token <lang:de> in this run; lang is one of ['en']",
    ),
    (
      chat('a?', voice='theo'),
      "no token <voice:theo> in this run; voice is one of ['ann']",
    ),
    (chat('a?', task='sing'), 'no token <task:sing> in this run; task is one of '),
    (chat('a' * 40), 'example needs more than a row has room for: length 46 of 40'),
    (
      chat(picture(), picture()),
      'room for: length 46 of 40, image.seen pieces 32 of 16, image.seen items 2 of 1',
    ),
    (chat('say', answer=sound(0.4)), 'room for: audio.spoken pieces 5 of 4'),
    (chat(sound(0.6)), 'sound of 0.60 s, longer than the 0.48 s of this run'),
  ],
  ids=['language', 'voice', 'task', 'length', 'images', 'frames', 'seconds'],
)
def test_examples_that_a_run_cannot_take_are_refused(example, reason):
  assert reason in refusal(example, RunCheck.of(config()))
  assert not refusal(example, None)


def test_an_image_of_more_patches_than_size_tokens_is_refused():
  wide = config()
  wide.model.image.width = 16
  reason = refusal(chat(picture()), RunCheck.of(wide))
  assert 'no token <size:8> in this run' in reason


def test_the_loader_stops_at_the_same_example():
  check = RunCheck.of(config())
  too_long = {'id': 'x', **chat('a' * 40)}
  with pytest.raises(BadRecord) as refused:
    check(too_long)
  loader = Loader(
    ExampleMaker([too_long], check.hosts, seed=0), check.budget, prefetch=0
  )
  with pytest.raises(UserError) as stopped:
    next(loader)
  assert str(stopped.value).startswith(refused.value.reason)


@pytest.mark.parametrize(
  'name, value, message',
  [
    ('model.image', {'hight': 8}, 'config.model.image: .*hight'),
    ('data.budget', {'rows': 2}, 'config.data.budget: .*length'),
    ('model.tokenizer', None, 'not that of a run: .*to_dict'),
  ],
)
def test_invalid_configs_are_refused(name, value, message):
  broken = config()
  part, _, key = name.partition('.')
  with broken.unlocked():
    broken[part][key] = ConfigDict(value) if value is not None else value
  with pytest.raises(UserError, match=message):
    RunCheck.of(broken)


def test_the_text_of_a_check_changes_with_its_run():
  other = config()
  other.data.budget.length = 41
  text = str(RunCheck.of(config()))
  assert text == str(RunCheck.of(config()))
  assert text != str(RunCheck.of(other))
