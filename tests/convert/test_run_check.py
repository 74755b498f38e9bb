"""What a run cannot take is refused at the conversion, with the reason that the run would have given."""

import pickle

from ml_collections import ConfigDict
import numpy as np
import pytest

from omni_jax.convert.conversion import converted
from omni_jax.convert.formats.reader import Found
from omni_jax.convert.run_check import RunCheck
from omni_jax.data.loader import Loader
from omni_jax.data.making import Making
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes


def config() -> ConfigDict:
  return ConfigDict(
    dict(
      model=dict(
        tokenizer=dict(languages=('en',), voices=('ann',), max_grid=4),
        image=dict(height=8, width=8, channels=1, patch=2),
        audio=dict(seconds=0.48),
      ),
      data=dict(
        budget=dict(
          rows=2,
          length=40,
          streams=dict(
            image=dict(seen=(16, 1), drawn=(16, 1)),
            audio=dict(heard=(6, 2), spoken=(4, 2)),
          ),
        )
      ),
    )
  )


def chat(*asked, answer='ok', **controls) -> dict:
  text = lambda part: {'type': 'text', 'text': part} if isinstance(part, str) else part
  return {
    'messages': [
      {'role': 'user', 'content': list(map(text, asked))},
      {'role': 'assistant', **controls, 'content': [text(answer)]},
    ]
  }


def picture() -> dict:
  return {'type': 'image', 'data': png_bytes(np.zeros((8, 8, 1)))}


def sound(seconds: float) -> dict:
  return {'type': 'audio', 'data': wav_bytes(np.zeros(round(8000 * seconds)), 8000)}


def refused(example: dict, check: RunCheck | None) -> str:
  return converted(Found('x', lambda: example), check).refused


@pytest.mark.parametrize(
  'example',
  [
    chat('what?', language='en', voice='ann', task='write'),
    chat(picture()),
    chat('say', answer=sound(0.3)),
  ],
  ids=['text', 'image', 'audio'],
)
def test_what_a_run_can_take_is_no_other_record(example):
  check = pickle.loads(pickle.dumps(RunCheck.of(config())))
  found = Found('x', lambda: example)
  assert converted(found, check) == converted(found) and not refused(example, check)


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
def test_what_a_run_cannot_take(example, reason):
  assert reason in refused(example, RunCheck.of(config())) and not refused(
    example, None
  )


def test_an_image_of_more_patches_than_there_are_sizes():
  wide = config()
  wide.model.image.width = 16
  assert 'no token <size:8> in this run' in refused(chat(picture()), RunCheck.of(wide))


def test_the_loader_refuses_the_same():
  """The check is worth something: what it lets through is packed, what it refuses would stop the run."""
  check, long = RunCheck.of(config()), {'id': 'x', **chat('a' * 40)}
  with pytest.raises(BadRecord) as found:
    check(long)
  loader = Loader(Making([long], check.hosts, seed=0), check.budget, prefetch=0)
  with pytest.raises(UserError) as stopped:
    next(loader)
  assert str(stopped.value).startswith(found.value.reason)


@pytest.mark.parametrize(
  'name, value, said',
  [
    ('model.image', {'hight': 8}, 'config.model.image: .*hight'),
    ('data.budget', {'rows': 2}, 'config.data.budget: .*length'),
    ('model.tokenizer', None, 'not that of a run: .*to_dict'),
  ],
)
def test_configs_that_are_none(name, value, said):
  broken = config()
  part, _, key = name.partition('.')
  with broken.unlocked():
    broken[part][key] = ConfigDict(value) if value is not None else value
  with pytest.raises(UserError, match=said):
    RunCheck.of(broken)


def test_its_text_changes_with_what_it_checks():
  other = config()
  other.data.budget.length = 41
  assert (
    str(RunCheck.of(config())) == str(RunCheck.of(config())) != str(RunCheck.of(other))
  )
