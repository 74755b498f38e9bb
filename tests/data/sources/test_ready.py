"""Tests the ready sets.

The examples are those of the files, splits stay apart, and what is missing or damaged
is reported in one line.
"""

import concurrent.futures
import csv
import io
import itertools
import json
import pathlib
import pickle
import zipfile

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest
from samples import data_config, hosts_of, make_unreadable

from omni_jax.convert.inputs import reader_of
from omni_jax.convert.local import convert
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.ready.barista import order_text, parse_order
from omni_jax.data.sources.ready.ready_set import Selection
from omni_jax.data.sources.ready.sets import READY
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.data.sources.table import held_out, training_examples, training_payloads
from omni_jax.errors import BadRecord, UserError
from omni_jax.evaluate.tasks.answers import case_of
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.sequence.example import parts_of

SHARED = pathlib.Path(__file__).parents[4] / 'shared' / 'data'
WORDS = DIGIT_WORDS['en']
GRAY = {'train': 20, 'test': 21}  # times the digit, the gray of an image
HOSTS = hosts_of(
  image=ImageConfig(height=4, width=4, channels=3),
  audio=AudioConfig(rate=8000, seconds=0.96),
)
# The file of each set that the tests below damage.
FILES = {
  'fsdd': 'fsdd/recordings.zip',
  'mnist': 'mnist/mnist.npz',
  'emoji': 'emoji/emoji64.zip',
  'barista': 'barista_speech/audio.zip',
  'text20': 'text20/train/en.txt',
}
DIRECTIONS = [(name, write) for name, kind in READY.items() for write in kind.WRITES]
every_set = pytest.mark.parametrize('name', READY)
every_direction = pytest.mark.parametrize('name, write', DIRECTIONS)


def sound_file(level: float, samples: int = 400) -> bytes:
  """Returns a WAV file of one level."""
  return wav_bytes(np.full(samples, level, np.float32), 8000)


def write_zip(path: pathlib.Path, members: dict[str, bytes]) -> None:
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)


def write_lines(path: pathlib.Path, rows: list[dict]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def image_file(color: tuple[int, ...]) -> bytes:
  """Returns a PNG file of one colour, given as red, green, blue and alpha."""
  out = io.BytesIO()
  Image.new('RGBA', (4, 4), color).save(out, format='PNG')
  return out.getvalue()


@pytest.fixture
def root(tmp_path):
  """Returns a folder with all five sets in small.

  Their media show what they are: a digit is the level of a sound or a gray.
  """
  write_fsdd(tmp_path / 'fsdd')
  write_mnist(tmp_path / 'mnist')
  write_emoji(tmp_path / 'emoji')
  write_barista(tmp_path / 'barista_speech')
  write_text20(tmp_path / 'text20')
  return tmp_path


def write_fsdd(folder):
  folder.mkdir()
  rows = [('file', 'digit', 'speaker', 'index', 'split')]
  recordings = {}
  for digit, speaker, take in itertools.product((3, 7), ('ann', 'bob'), range(3)):
    name = f'{digit}_{speaker}_{take}.wav'
    rows.append((name, digit, speaker, take, 'train' if take else 'test'))
    samples = 400 + 10 * take
    if speaker == 'ann':
      samples += 12
    recordings[f'recordings/{name}'] = sound_file(digit / 16, samples)
  with open(folder / 'index.csv', 'w', newline='') as file:
    csv.writer(file).writerows(rows)
  write_zip(folder / 'recordings.zip', recordings)


def write_mnist(folder):
  folder.mkdir()
  digits = {'train': np.arange(10, dtype=np.uint8), 'test': np.array([5, 2], np.uint8)}
  arrays = {}
  for split, labels in digits.items():
    arrays[f'{split}_labels'] = labels
    arrays[f'{split}_images'] = np.repeat(GRAY[split] * labels, 16).reshape(-1, 4, 4)
  np.savez_compressed(folder / 'mnist.npz', **arrays)


def write_emoji(folder):
  folder.mkdir()
  red = {'en': 'red', 'de': 'rot', 'fr': 'rouge'}
  green = {'en': 'green', 'de': 'grün', 'fr': 'vert'}
  emoji = [
    {'file': 'red.png', 'names': red, 'split': 'train'},
    {'file': 'green.png', 'names': green, 'split': 'test'},
  ]
  flags = [{'file': 'clear.png', 'names': {'en': 'flag'}, 'split': 'train'}]
  write_lines(folder / 'emoji.jsonl', emoji)
  write_lines(folder / 'flags.jsonl', flags)
  pictures = {
    'red.png': image_file((255, 0, 0, 255)),
    'green.png': image_file((0, 255, 0, 255)),
  }
  write_zip(folder / 'emoji64.zip', pictures)
  write_zip(folder / 'flags64.zip', {'clear.png': image_file((0, 0, 0, 0))})


def write_barista(folder):
  folder.mkdir()
  rows = []
  for k in range(3):
    row = {
      'file': f'{k}.wav',
      'intent': 'orderDrink',
      'slots': {'size': 'small', 'coffeeDrink': f'latte {k}'},
      'split': 'test' if k == 2 else 'train',
    }
    rows.append(row)
  write_lines(folder / 'labels.jsonl', rows)
  write_zip(folder / 'audio.zip', {f'{k}.wav': sound_file(k / 8) for k in range(3)})


def write_text20(folder):
  (folder / 'train').mkdir(parents=True)
  (folder / 'parallel_ntrex').mkdir()
  for language in READY['text20'].LANGUAGES:
    text = f'{language} one\n\n{language} a long third line\n'
    (folder / f'train/{language}.txt').write_text(text)
    for split in ('train', 'test'):
      text = f'{language} {split} 1\n{language} {split} 2\n'
      (folder / f'parallel_ntrex/{language}.{split}.txt').write_text(text)


def open_set(root, name, split='train', hosts=HOSTS, **selection):
  return READY[name](str(root), Selection(split, **selection), hosts)


def prompt_and_answer(example):
  """Returns the part of the prompt, that of the answer, and the answer's message."""
  user, assistant = example['messages']
  assert (user['role'], assistant['role']) == ('user', 'assistant')
  return user['content'][0], assistant['content'][0], assistant


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


@every_set
def test_a_missing_file_is_reported_in_one_line(root, name):
  (root / FILES[name]).unlink()
  remedy = r'config\.data\.root must name the folder'
  message = rf'{FILES[name]} cannot be used \(No such file .*{remedy}'
  with pytest.raises(UserError, match=message) as error:
    open_set(root, name)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['fsdd', 'mnist', 'emoji', 'barista'])
def test_a_file_that_is_no_archive_is_reported_in_one_line(root, name):
  (root / FILES[name]).write_bytes(b'no archive')
  with pytest.raises(UserError, match=FILES[name]) as error:
    open_set(root, name)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('name', ['fsdd', 'emoji', 'barista'])
def test_a_damaged_member_is_a_bad_record_and_the_others_are_read(root, name):
  examples = open_set(root, name)
  path = root / FILES[name]
  with zipfile.ZipFile(path) as archive:
    first = archive.infolist()[0]
    if name == 'fsdd':  # the first member is of the other split
      first = archive.getinfo('recordings/3_ann_1.wav')
  data = bytearray(path.read_bytes())
  local_header = 30 + len(first.filename)
  data[first.header_offset + local_header + 20] ^= 255  # within the member's data
  path.write_bytes(data)
  with pytest.raises(BadRecord, match=rf'^{name}/train/.*cannot be read \(Bad CRC-32'):
    open_set(root, name)[0]
  assert open_set(root, name)[len(examples) - 1]['id']
  write_zip(path, {'other': b''})
  with pytest.raises(BadRecord, match='is not in'):
    open_set(root, name)[0]


@pytest.mark.parametrize('field', ['encrypted', 'compression'])
@pytest.mark.parametrize('name', ['fsdd', 'mnist', 'emoji', 'barista'])
def test_an_archive_that_python_cannot_unpack_is_reported(root, name, field):
  make_unreadable(root / FILES[name], field)
  message = {'encrypted': 'password', 'compression': 'compression'}[field]
  if name == 'mnist':
    with pytest.raises(UserError, match=f'{FILES[name]} cannot be used .*{message}'):
      open_set(root, name)
  else:
    with pytest.raises(BadRecord, match=f'cannot be read .*{message}'):
      open_set(root, name)[0]


@pytest.mark.parametrize(
  'file, text, message',
  [
    ('fsdd/index.csv', 'file,digit\nx,1\n', r'index\.csv cannot be used \(KeyError'),
    (
      'fsdd/index.csv',
      'file,digit,speaker,split\nx,eleven,ann,train\n',
      r'index\.csv cannot be used \(ValueError',
    ),
    (
      'emoji/flags.jsonl',
      '{"file": "x"',
      r'flags\.jsonl cannot be used \(line 1 is not JSON',
    ),
    (
      'emoji/flags.jsonl',
      '{"file": "x", "split": "train", "names": 3}',
      'line 1 has no usable names',
    ),
    (
      'barista_speech/labels.jsonl',
      '{"file": "x", "split": "train", "intent": "a;b", "slots": {}}',
      'cannot be told apart',
    ),
    ('text20/train/en.txt', b'\xff\xfe', 'not UTF-8 at byte 0'),
  ],
  ids=str,
)
def test_a_damaged_index_is_reported_in_one_line(root, file, text, message):
  data = text if isinstance(text, bytes) else text.encode()
  (root / file).write_bytes(data)
  name = file.split('/')[0].removesuffix('_speech')
  with pytest.raises(UserError, match=message) as error:
    open_set(root, name)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  'name, selection, message',
  [
    ('mnist', {'split': 'valid'}, "mnist: no split 'valid'; there are train, test"),
    ('mnist', {'write': 'audio'}, "mnist: no write 'audio'; there are text, image"),
    (
      'emoji',
      {'languages': ('en', 'xx')},
      "emoji: no language 'xx'; there are ar, de, en",
    ),
    ('fsdd', {'read': 'en'}, "fsdd: no read 'en'; there are none"),
    ('text20', {'read': 'xx'}, "text20: no read 'xx'"),
    (
      'text20',
      {'read': 'en', 'languages': ('en',)},
      "holds no examples of split 'train', languages en",
    ),
  ],
)
def test_selections_that_a_set_does_not_have_are_named(root, name, selection, message):
  with pytest.raises(UserError, match=message):
    open_set(root, name, **selection)


def test_lines_that_are_not_parallel_are_refused(root):
  (root / 'text20/parallel_ntrex/de.train.txt').write_text('one\n')
  message = r'de\.train\.txt cannot be used \(1 lines, but en\.train\.txt has 2\)'
  with pytest.raises(UserError, match=message):
    open_set(root, 'text20', read='en')


def config(root, source, **values) -> ConfigDict:
  return data_config(source=source, root=str(root), **values)


def test_one_line_of_a_config_names_a_set(root):
  counts = {
    'fsdd': (8, 4),
    'mnist': (10, 2),
    'emoji': (4, 3),
    'barista': (2, 1),
    'text20': (40, 40),
  }
  assert counts.keys() == READY.keys()
  for name, (train, test) in counts.items():
    assert len(training_examples(config(root, name), HOSTS)) == train
    assert len(held_out(config(root, name), HOSTS)) == test
  settings = config(root, 'emoji', language='de,fr', write='image')
  examples = training_examples(settings, HOSTS)
  assert [prompt_and_answer(example)[0]['text'] for example in examples] == [
    'rot',
    'rouge',
  ]
  message = r'name the folder that holds barista_speech/ with --config\.data\.root=DIR'
  with pytest.raises(UserError, match=message):
    training_examples(config('', 'barista'), HOSTS)


def test_a_speaker_is_left_out_and_the_codec_learns_the_others(root):
  settings = config(root, 'fsdd', write='audio', leave_out='bob')
  examples = training_examples(settings, HOSTS)
  assert {prompt_and_answer(example)[2]['voice'] for example in examples} == {'ann'}
  assert len(training_payloads(settings, HOSTS, 'audio')) == 4


def test_a_mixture_holds_out_what_its_parts_do(root):
  parts = {
    'a': dict(source='mnist'),
    'b': dict(source='fsdd', write='audio', weight=2.0),
    'c': dict(source='barista', eval_split=''),
  }
  settings = config(root, 'mixture', eval_file='', sources=parts)
  assert len(training_examples(settings, HOSTS)) == 10 + 8 + 2
  examples = held_out(settings, HOSTS)
  assert examples.path == 'a, b'
  assert case_of(examples.encoded(0)).group == 'mnist_image_to_text'
  assert case_of(examples.encoded(2)).group == 'fsdd_text_to_speech'
  assert examples[2]['id'].startswith('b/fsdd/test/')
  del settings.sources['a']
  del settings.sources['b']
  with pytest.raises(UserError, match="source='mixture' holds out nothing"):
    held_out(settings, HOSTS)


class Flags:
  """Stands for the flags of the command `convert`."""

  def __init__(self, **values):
    self.kind = ''
    self.rate = 0
    self.module = ''
    self.read = ''
    self.write = ''
    self.language = ''
    self.__dict__.update(values)


def test_a_set_is_converted(root, tmp_path):
  reader = reader_of(Flags(input='emoji:train', root=str(root), language='en,de'))
  convert(
    pickle.loads(pickle.dumps(reader)),
    tmp_path / 'out',
    shards=2,
    workers=1,
    input_name='it',
    timeout=60,
    log=lambda line: None,
  )
  shards = sorted((tmp_path / 'out').glob('*.array_record'))
  converted = {example['id']: example for example in ArrayRecordExamples(shards, HOSTS)}
  expected = list(open_set(root, 'emoji', languages=('en', 'de')))
  assert converted.keys() == {example['id'] for example in expected}
  for example in expected:
    other = converted[example['id']]
    image, name, _ = prompt_and_answer(example)
    other_image, other_name, _ = prompt_and_answer(other)
    np.testing.assert_array_equal(image['pixels'], other_image['pixels'])
    assert name == other_name
    assert other['meta']['group'] == 'emoji_image_to_text'
  with pytest.raises(UserError, match=r"^--input=emoji:valid: emoji: no split 'valid'"):
    reader_of(Flags(input='emoji:valid', root=str(root)))
  message = '--input=emoji:train: give the folder that holds emoji/, --root=DIR'
  with pytest.raises(UserError, match=message):
    reader_of(Flags(input='emoji:train', root=''))
  message = r'^--input=mnist:train: .*: --root must name the folder that holds mnist/'
  with pytest.raises(UserError, match=message):
    reader_of(Flags(input='mnist:train', root=str(tmp_path / 'nothing')))


# (set, selection) -> number of examples of train and test, as in docs/ready_sources.md.
COUNTS = {
  ('fsdd', ()): (2250, 250),
  ('mnist', ()): (59400, 10000),
  ('emoji', ()): (60300, 5501),
  ('emoji', (('languages', ('en',)),)): (3015, 276),
  ('barista', ()): (459, 100),
  ('text20', ()): (88185, 8160),
  ('text20', (('read', 'en'),)): (26353, 7752),
}


@pytest.mark.skipif(not SHARED.is_dir(), reason='the shared data are not here')
@pytest.mark.parametrize('name, selection', COUNTS, ids=str)
def test_the_shared_data_have_the_documented_counts(name, selection):
  hosts = hosts_of(
    image=ImageConfig(64, 64, 3, 8), audio=AudioConfig(rate=8000, seconds=15.04)
  )
  train = open_set(SHARED, name, 'train', hosts, **dict(selection))
  test = open_set(SHARED, name, 'test', hosts, **dict(selection))
  assert (len(train), len(test)) == COUNTS[name, selection]
  if name not in ('mnist', 'text20'):  # there, numbers of images and lines start again
    assert not names_of(train) & names_of(test)
  for examples in (train, test):
    for k in range(0, len(examples), len(examples) // 20):
      for part in parts_of(examples[k]):
        assert_content(part)


def names_of(examples) -> set[str]:
  """Returns the ids without set and split."""
  ids = [examples.encoded(k)['id'] for k in range(len(examples))]
  return {id.split('/', 2)[2] for id in ids}


def assert_content(part):
  if part['type'] == 'audio':
    assert len(part['wave']) > 800
    assert np.abs(part['wave']).max() > 0.01
  if part['type'] == 'image':
    assert part['pixels'].std() > 0.01
  if part['type'] == 'text':
    assert part['text'].strip()


@pytest.mark.skipif(not SHARED.is_dir(), reason='the shared data are not here')
def test_labels_of_the_shared_data_are_those_of_the_files():
  """The name of a recording has its digit; the nearest image mostly has the digit."""
  examples = open_set(SHARED, 'fsdd', 'test', HOSTS)
  for k in range(len(examples)):
    example = examples.encoded(k)
    digit, speaker, _ = example['id'].rpartition('/')[2].split('_')
    clip, word, _ = prompt_and_answer(example)
    assert word['text'] == clip['label'] == WORDS[int(digit)]
    assert clip['voice'] == speaker
  hosts = hosts_of(image=ImageConfig(7, 7, 1, 7))
  train = open_set(SHARED, 'mnist', 'train', hosts)
  test = open_set(SHARED, 'mnist', 'test', hosts)
  images_and_words = [prompt_and_answer(train[k])[:2] for k in range(3000)]
  pixels = np.stack([image['pixels'] for image, _ in images_and_words])
  correct = 0
  for k in range(200):
    image, word, _ = prompt_and_answer(test[k])
    distances = np.abs(pixels - image['pixels']).sum((1, 2, 3))
    _, nearest = images_and_words[int(distances.argmin())]
    correct += nearest == word
  assert correct / 200 > 0.8
