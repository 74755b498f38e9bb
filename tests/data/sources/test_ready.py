"""Tests the ready sets: the examples are those of the files, and splits stay apart."""

import concurrent.futures
import pickle

from data.sources.ready_sets import (
  every_direction,
  every_set,
  FILES,
  GRAY,
  open_set,
  prompt_and_answer,
  WORDS,
)
import numpy as np
import pytest
from samples import hosts_of

from omni_jax.data.sources.ready.barista import order_text, parse_order
from omni_jax.data.sources.ready.sets import READY
from omni_jax.errors import BadRecord
from omni_jax.evaluate.tasks.answers import case_of
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.sequence.example import parts_of


def equal(left, right) -> bool:
  return pickle.dumps(left) == pickle.dumps(right)


@every_direction
def test_a_set_is_the_same_in_another_process_and_in_threads(root, name, write):
  examples = open_set(root, name, write=write)
  expected = list(examples)
  assert len({example['id'] for example in expected}) == len(expected) > 1
  copy = pickle.loads(pickle.dumps(examples))
  indices = list(range(len(expected))) * 8
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    results = list(threads.map(copy.__getitem__, indices))
  for index, example in zip(indices, results, strict=True):
    assert equal(example, expected[index])
  assert equal(examples[-1], expected[-1])
  assert copy.identity() == examples.identity()
  with pytest.raises(IndexError):
    examples[len(examples)]


@every_direction
def test_splits_share_no_example(root, name, write):
  def contents(split):
    """Returns the media of a split, or the texts of text20, which has no media."""
    examples = open_set(root, name, split, write=write)
    values = set()
    for k in range(len(examples)):
      for part in parts_of(examples.stored(k)):
        if part['type'] != 'text' or name == 'text20':
          values.add(part.get('data', part.get('text')))
    return values

  counts = {'fsdd': 8, 'mnist': 10, 'emoji': 2, 'barista': 2, 'text20': 40}
  assert len(contents('train')) == counts[name]
  assert contents('test')
  assert not contents('train') & contents('test')


GROUPS = {
  ('fsdd', 'text'): 'fsdd_speech_to_text',
  ('fsdd', 'audio'): 'fsdd_text_to_speech',
  ('mnist', 'text'): 'mnist_image_to_text',
  ('mnist', 'image'): 'mnist_text_to_image',
  ('emoji', 'text'): 'emoji_image_to_text',
  ('emoji', 'image'): 'emoji_text_to_image',
  ('barista', 'text'): 'barista_speech_to_text',
  ('text20', 'text'): 'text20',
}


@every_direction
def test_the_group_of_an_example_names_its_set_and_needs_no_decoding(root, name, write):
  examples = open_set(root, name, write=write)
  encoded = examples.encoded(0)
  assert case_of(encoded).group == GROUPS[name, write]
  assert case_of(examples[0]).group == GROUPS[name, write]
  for part in parts_of(encoded):
    assert not {'data', 'pixels', 'wave'} & part.keys()


def test_recordings_come_with_their_words_and_speakers(root):
  train = open_set(root, 'fsdd')
  assert len(train) == 8
  for example in train:
    clip, word, answer = prompt_and_answer(example)
    digit = clip['wave'][0] * 16
    assert digit == WORDS.index(word['text']) == WORDS.index(clip['label'])
    assert f'_{clip["voice"]}_' in example['id']
    assert (answer['language'], answer['task']) == ('en', 'write')
    assert not example['id'].endswith('_0.wav')
    assert 'voice' not in answer
  test = open_set(root, 'fsdd', 'test', write='audio')
  assert len(test) == 4
  for example in test:
    word, clip, answer = prompt_and_answer(example)
    assert clip['wave'][0] * 16 == WORDS.index(word['text'])
    assert example['id'].endswith('_0.wav')
    assert answer['voice'] == clip['voice']
    assert answer['task'] == 'speak'


def test_images_of_digits_come_with_their_words(root):
  assert_digits(root, 'train', range(10))
  assert_digits(root, 'test', (5, 2))


def assert_digits(root, split, digits):
  to_read = open_set(root, 'mnist', split)
  to_draw = open_set(root, 'mnist', split, write='image')
  assert len(to_read) == len(to_draw) == len(digits)
  for k, digit in enumerate(digits):
    gray = np.float32(GRAY[split] * digit) / 255
    image, word, answer = prompt_and_answer(to_read[k])
    assert word['text'] == image['label'] == WORDS[digit]
    assert answer['task'] == 'write'
    np.testing.assert_array_equal(image['pixels'], np.full((4, 4, 3), gray))
    word, image, answer = prompt_and_answer(to_draw[k])
    assert word['text'] == WORDS[digit]
    assert answer['task'] == 'draw'
    assert 'language' not in answer
    assert image['pixels'][0, 0, 0] == gray


def test_pictures_come_with_their_names_in_each_language(root):
  train = open_set(root, 'emoji', languages=('en', 'de'))
  examples = [prompt_and_answer(example) for example in train]
  names = [(name['text'], answer['language']) for _, name, answer in examples]
  assert names == [('red', 'en'), ('rot', 'de'), ('flag', 'en')]
  colors = [image['pixels'][0, 0].tolist() for image, *_ in examples]
  assert colors == [[1, 0, 0], [1, 0, 0], [1, 1, 1]], 'transparent is white'
  test = open_set(root, 'emoji', 'test', write='image', languages=('fr',))
  name, image, answer = prompt_and_answer(test[0])
  assert name['text'] == 'vert'
  assert image['pixels'][0, 0].tolist() == [0, 1, 0]
  assert answer['task'] == 'draw'


def test_orders_come_with_their_slots(root):
  for k, example in enumerate(open_set(root, 'barista')):
    clip, text, _ = prompt_and_answer(example)
    assert clip['wave'][0] == k / 8
    assert text['text'] == f'orderDrink; coffeeDrink: latte {k}; size: small'
    slots = {'coffeeDrink': f'latte {k}', 'size': 'small'}
    assert parse_order(text['text']) == ('orderDrink', slots)
    assert example['meta'] == {'group': 'barista_speech_to_text', 'form': 'slots'}
  hosts = hosts_of(audio=AudioConfig(rate=500, seconds=0.04))
  message = r'barista/train/0\.wav: sound of 0\.05 s, longer than'
  with pytest.raises(BadRecord, match=message):
    open_set(root, 'barista', hosts=hosts)[0]


@pytest.mark.parametrize(
  'text, order',
  [
    ('', ('', {})),
    ('orderDrink', ('orderDrink', {})),
    ('a;; :x; b:; c : d ;c: e; f: g: h', ('a', {'c': 'd', 'f': 'g: h'})),
  ],
)
def test_any_text_is_parsed_as_an_order(text, order):
  assert parse_order(text) == order


@pytest.mark.parametrize(
  'slots', [{'size': 'a; b'}, {'a:b': 'c'}, {'size': ''}], ids=str
)
def test_slots_that_would_not_be_parsed_back_are_refused(slots):
  with pytest.raises(ValueError, match='cannot be told apart'):
    order_text('x', slots)


def test_lines_and_translations_are_read(root):
  plain = open_set(root, 'text20', languages=('en', 'de'))
  assert [example['content'][0]['text'] for example in plain] == [
    'en one',
    'en a long third line',
    'de one',
    'de a long third line',
  ]
  assert plain[1]['id'] == 'text20/train/en/3'
  assert len(open_set(root, 'text20', languages=('en', 'de'), longest=6)) == 2
  pairs = open_set(root, 'text20', 'test', read='en')
  assert len(pairs) == 2 * (len(READY['text20'].LANGUAGES) - 1)
  for example in pairs:
    source, target, answer = prompt_and_answer(example)
    language = answer['language']
    assert source['text'].startswith('en test')
    assert language != 'en'
    assert answer['task'] == 'write'
    assert target['text'] == source['text'].replace('en test', f'{language} test')


@every_set
def test_identity_changes_with_the_data_and_with_the_selection(root, name):
  examples = open_set(root, name)
  before = examples.identity()
  assert before == open_set(root, name).identity()
  assert before != open_set(root, name, 'test').identity()
  path = root / FILES[name]
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  assert examples.identity() != before
