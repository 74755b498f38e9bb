"""Examples <-> spans: whatever is interleaved comes back, and loss falls where the assistant writes."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest
from samples import chat, examples, hosts_of, text, tiny_model

from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.text.tokenizer import TokenizerConfig
from omni_jax.sequence.interleave import interleave, parse, prompt_spans

HOSTS = hosts_of(
  tokenizer=TokenizerConfig(languages=('en', 'de'), voices=('f1', 'm1'), max_grid=4)
)
TOKENIZER = HOSTS.tokenizer

texts = st.builds(text, st.text(st.characters(codec='utf-8'), min_size=1, max_size=8))
media = st.one_of(
  st.builds(
    lambda n: {'type': 'image', 'pixels': np.full((n, 4, 1), n / 8, np.float32)},
    st.sampled_from([2, 4, 8]),
  ),
  st.builds(
    lambda n: {'type': 'audio', 'wave': np.full(n, 0.1, np.float32)},
    st.integers(1, 900),
  ),
)


def content(min_size=0):
  """Parts in any order; neighbouring texts are one text by nature, so there are none."""
  apart = lambda parts: all(
    a['type'] != 'text' or b['type'] != 'text'
    for a, b in zip(parts, parts[1:], strict=False)
  )
  return st.lists(st.one_of(texts, media), min_size=min_size, max_size=5).filter(apart)


users = st.fixed_dictionaries({'role': st.just('user'), 'content': content()})
assistants = st.fixed_dictionaries(
  {'role': st.just('assistant'), 'content': content()},
  optional={
    'language': st.sampled_from(['en', 'de']),
    'task': st.sampled_from(['write', 'draw', 'speak', 'reply']),
    'voice': st.sampled_from(['f1', 'm1']),
  },
)
chats = st.fixed_dictionaries(
  {'messages': st.lists(st.one_of(users, assistants), min_size=1, max_size=5)}
)
plains = st.fixed_dictionaries({'content': content(1)})


def comparable(example):
  """Arrays as nested lists, so that == compares everything."""
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
def test_exactly_what_assistants_say_is_written(example):
  spans = interleave(example, HOSTS)
  written = [span for span in spans if span.written]
  said = [m for m in example['messages'] if m['role'] == 'assistant']
  parts = [part for m in said for part in m['content']]
  assert sum(span.medium != TEXT for span in written) == sum(
    part['type'] != 'text' for part in parts
  )
  ids = [i for span in written for i in span.tokens]
  wanted = []
  for message in said:
    for part in message['content']:
      wanted += TOKENIZER.encode(part['text']) if part['type'] == 'text' else []
    wanted.append(TOKENIZER.special('eot'))
  assert ids == wanted


def names(spans):
  return [
    TOKENIZER.name(i) or TOKENIZER.decode((i,)) for span in spans for i in span.tokens
  ]


def test_the_grammar_is_whispers():
  example = chat('', [text('a')], [text('b')], voice='f1', task='write', language='de')
  assert names(interleave(example, HOSTS)) == [
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
  assert names(interleave({'content': [text('a')]}, HOSTS)) == ['bos', 'a', 'eot']


def test_loss_of_a_plain_example_falls_on_all_but_its_first_token():
  first, *rest = interleave({'content': [text('a')]}, HOSTS)
  assert (
    not first.written and len(first.tokens) == 1 and all(span.written for span in rest)
  )


@pytest.mark.parametrize('example', examples()[:4], ids=lambda example: example['id'])
def test_a_prompt_is_the_example_up_to_the_answer(example):
  *earlier, last = example['messages']
  hosts = tiny_model().hosts()
  prompt = prompt_spans({'messages': [*earlier, last | {'content': []}]}, hosts)
  whole = interleave(example, hosts)
  assert not any(span.written for span in prompt)
  ids = lambda spans: [i for span in spans for i in span.tokens]
  assert ids(prompt) == ids(span for span in whole if not span.written)


def test_neighbouring_texts_are_one_span():
  spans = interleave(chat('', [text('a'), text('b')], [text('c'), text('d')]), HOSTS)
  assert [span.written for span in spans] == [False, True]


@pytest.mark.parametrize(
  'wrong, message',
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
def test_what_the_run_does_not_know_is_a_user_error(wrong, message):
  with pytest.raises(UserError, match=message):
    interleave(wrong, HOSTS)


def test_a_medium_that_the_run_has_not_got_is_a_user_error():
  text_only = Hosts({}, TOKENIZER)
  spans = interleave(chat('', [text('a')], [text('b')]), text_only)
  assert comparable(parse(spans, text_only)) == comparable(parse(spans, HOSTS))
  shown = {'type': 'image', 'pixels': np.zeros((2, 2, 1), np.float32)}
  with pytest.raises(UserError, match="type 'image' is unknown; it is one of text$"):
    interleave(chat('', [shown], [text('a')]), text_only)


def test_a_span_carries_its_payload_and_what_is_stored_beside_it():
  wave, codes = np.zeros(9, np.float32), np.ones((1, 4), np.uint16)
  heard = {'type': 'audio', 'wave': wave, 'code': codes, 'voice': 'f1'}
  *_, span, end = interleave(chat('', [heard], []), HOSTS)[:3]
  assert (span.medium, span.written, span.tokens) == ('audio', False, ())
  assert span.payload is wave and span.stored is codes and end.medium == TEXT
