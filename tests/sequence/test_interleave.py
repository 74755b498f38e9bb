"""Examples become spans and come back; loss falls where the assistant writes."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from samples import chat, examples, hosts_of, text, tiny_model

from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.text.tokenizer import TASKS, TokenizerConfig
from omni_jax.sequence.interleave import interleave, parse, prompt_spans

HOSTS = hosts_of(
  tokenizer=TokenizerConfig(languages=('en', 'de'), voices=('f1', 'm1'), max_grid=4)
)
TOKENIZER = HOSTS.tokenizer


def image_of(height):
  return {'type': 'image', 'pixels': np.full((height, 4, 1), height / 8, np.float32)}


def sound_of(samples):
  return {'type': 'audio', 'wave': np.full(samples, 0.1, np.float32)}


texts = st.builds(text, st.text(st.characters(codec='utf-8'), min_size=1, max_size=8))
images = st.builds(image_of, st.sampled_from([2, 4, 8]))
sounds = st.builds(sound_of, st.integers(1, 900))


def has_no_neighbouring_texts(parts):
  types = [part['type'] for part in parts]
  return ('text', 'text') not in itertools.pairwise(types)


def content(min_size=0):
  """Returns a strategy of parts in any order, without neighbouring texts.

  Neighbouring texts would become one.
  """
  parts = st.lists(st.one_of(texts, images, sounds), min_size=min_size, max_size=5)
  return parts.filter(has_no_neighbouring_texts)


users = st.fixed_dictionaries({'role': st.just('user'), 'content': content()})
assistants = st.fixed_dictionaries(
  {'role': st.just('assistant'), 'content': content()},
  optional={
    'language': st.sampled_from(['en', 'de']),
    'task': st.sampled_from(list(TASKS.values())),
    'voice': st.sampled_from(['f1', 'm1']),
  },
)
chats = st.fixed_dictionaries(
  {'messages': st.lists(st.one_of(users, assistants), min_size=1, max_size=5)}
)
plains = st.fixed_dictionaries({'content': content(1)})


def comparable(example):
  """Returns the example with arrays as nested lists, so that == compares everything."""
  if isinstance(example, dict):
    return {key: comparable(value) for key, value in example.items()}
  if isinstance(example, list):
    return [comparable(value) for value in example]
  return example.tolist() if isinstance(example, np.ndarray) else example


@settings(max_examples=150)
@given(st.one_of(chats, plains))
def test_any_interleaving_comes_back(example):
  assert comparable(parse(interleave(example, HOSTS), HOSTS)) == comparable(example)


@settings(max_examples=50)
@given(chats)
def test_exactly_the_answers_of_assistants_are_written(example):
  expected_ids = []
  expected_media = []
  for message in example['messages']:
    if message['role'] != 'assistant':
      continue
    for part in message['content']:
      if part['type'] == 'text':
        expected_ids += TOKENIZER.encode(part['text'])
      else:
        expected_media.append(part['type'])
    expected_ids.append(TOKENIZER.special('eot'))
  written = [span for span in interleave(example, HOSTS) if span.written]
  assert [span.medium for span in written if span.medium != TEXT] == expected_media
  assert ids_of(written) == expected_ids


def ids_of(spans):
  """Returns the ids of all spans, one after the other."""
  ids = []
  for span in spans:
    ids += span.tokens
  return ids


def token_names(spans):
  """Returns the special tokens and characters of spans."""
  return [TOKENIZER.name(i) or TOKENIZER.decode((i,)) for i in ids_of(spans)]


def test_special_tokens_have_the_order_of_whisper():
  example = chat('', [text('a')], [text('b')], voice='f1', task='write', language='de')
  assert token_names(interleave(example, HOSTS)) == [
    'bos',
    'user',
    'a',
    'sot',
    'lang:de',
    'task:write',
    'voice:f1',
    'b',
    'eot',
  ]
  plain = {'content': [text('a')]}
  assert token_names(interleave(plain, HOSTS)) == ['bos', 'a', 'eot']


def test_loss_of_a_plain_example_falls_on_all_but_its_first_token():
  first, *rest = interleave({'content': [text('a')]}, HOSTS)
  assert not first.written
  assert len(first.tokens) == 1
  assert all(span.written for span in rest)


@pytest.mark.parametrize('example', examples()[:4], ids=lambda example: example['id'])
def test_a_prompt_is_the_example_up_to_the_answer(example):
  *earlier, last = example['messages']
  hosts = tiny_model().hosts()
  prompt = prompt_spans({'messages': [*earlier, last | {'content': []}]}, hosts)
  read_spans = [span for span in interleave(example, hosts) if not span.written]
  assert not any(span.written for span in prompt)
  assert ids_of(prompt) == ids_of(read_spans)


def test_neighbouring_texts_are_one_span():
  spans = interleave(chat('', [text('a'), text('b')], [text('c'), text('d')]), HOSTS)
  assert [span.written for span in spans] == [False, True]


@pytest.mark.parametrize(
  'example, message',
  [
    (
      chat('', [{'type': 'smell'}], [text('a')]),
      "type 'smell' is unknown; it is one of text, image, audio",
    ),
    (chat('', [text('a')], [text('b')], language='xx'), '<lang:xx>'),
    (chat('', [text('a')], [text('b')], voice='nobody'), '<voice:nobody>'),
  ],
  ids=['type', 'language', 'voice'],
)
def test_an_unknown_type_or_token_is_a_user_error(example, message):
  with pytest.raises(UserError, match=message):
    interleave(example, HOSTS)


def test_a_medium_that_the_run_does_not_have_is_a_user_error():
  text_only = Hosts({}, TOKENIZER)
  spans = interleave(chat('', [text('a')], [text('b')]), text_only)
  assert comparable(parse(spans, text_only)) == comparable(parse(spans, HOSTS))
  image = {'type': 'image', 'pixels': np.zeros((2, 2, 1), np.float32)}
  with pytest.raises(UserError, match="type 'image' is unknown; it is one of text$"):
    interleave(chat('', [image], [text('a')]), text_only)


def test_a_span_carries_its_payload_and_its_stored_codes():
  wave = np.zeros(9, np.float32)
  codes = np.ones((1, 4), np.uint16)
  part = {'type': 'audio', 'wave': wave, 'code': codes, 'voice': 'f1'}
  *_, span, end = interleave(chat('', [part], []), HOSTS)[:3]
  assert (span.medium, span.written, span.tokens) == ('audio', False, ())
  assert span.payload is wave
  assert span.stored is codes
  assert end.medium == TEXT
