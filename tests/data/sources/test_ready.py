"""Ready sets: what is read is what lies there, splits stay apart, and what is missing or damaged is one line."""

import concurrent.futures
import csv
import io
import json
import pathlib
import pickle
import zipfile

from ml_collections import ConfigDict
import numpy as np
from PIL import Image
import pytest
from samples import data_config, hosts_of

from omni_jax.convert.inputs import reader_of
from omni_jax.convert.local import convert
from omni_jax.data.sources.espeak import DIGIT_WORDS
from omni_jax.data.sources.ready.barista import order_text, parse_order
from omni_jax.data.sources.ready.ready_set import Asked
from omni_jax.data.sources.ready.sets import READY
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.data.sources.table import held_out, training_examples, training_payloads
from omni_jax.errors import BadRecord, UserError
from omni_jax.evaluate.tasks.answers import case_of
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image.sizes import ImageConfig

SHARED = pathlib.Path(__file__).parents[4] / 'shared' / 'data'
WORDS = DIGIT_WORDS['en']
GRAY = {'train': 20, 'test': 21}  # of a digit in the images here: times the digit
HOSTS = hosts_of(
  image=ImageConfig(height=4, width=4, channels=3),
  audio=AudioConfig(rate=8000, seconds=0.96),
)
FILES = {
  'fsdd': 'fsdd/recordings.zip',
  'mnist': 'mnist/mnist.npz',
  'emoji': 'emoji/emoji64.zip',
  'barista': 'barista_speech/audio.zip',
  'text20': 'text20/train/en.txt',
}  # what is damaged below
DIRECTIONS = [(name, write) for name, kind in READY.items() for write in kind.WRITES]
every_set = pytest.mark.parametrize('name', READY)
every_direction = pytest.mark.parametrize('name, write', DIRECTIONS)


def tone(level: float, samples: int = 400) -> bytes:
  return wav_bytes(np.full(samples, level, np.float32), 8000)


def zipped(path: pathlib.Path, members: dict[str, bytes]) -> None:
  with zipfile.ZipFile(path, 'w') as archive:
    for name, data in members.items():
      archive.writestr(name, data)


def lines(path: pathlib.Path, rows: list[dict]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def rgba(color: tuple[int, ...]) -> bytes:
  out = io.BytesIO()
  Image.new('RGBA', (4, 4), color).save(out, format='PNG')
  return out.getvalue()


@pytest.fixture
def root(tmp_path):
  """All five folders in small, with media that tell what they are: the digit is the level of a sound or a gray."""
  for name in (
    'fsdd',
    'mnist',
    'emoji',
    'barista_speech',
    'text20/train',
    'text20/parallel_ntrex',
  ):
    (tmp_path / name).mkdir(parents=True)
  takes = [
    (f'{digit}_{who}_{take}.wav', digit, who, take)
    for digit in (3, 7)
    for who in ('ann', 'bob')
    for take in range(3)
  ]
  with open(tmp_path / 'fsdd/index.csv', 'w', newline='') as file:
    csv.writer(file).writerows(
      [
        ('file', 'digit', 'speaker', 'index', 'split'),
        *((*row, 'train' if row[3] else 'test') for row in takes),
      ]
    )
  zipped(
    tmp_path / 'fsdd/recordings.zip',
    {
      f'recordings/{name}': tone(
        digit / 16, 400 + 10 * take + len(takes) * (who == 'ann')
      )
      for name, digit, who, take in takes
    },
  )

  digits = {'train': np.arange(10, dtype=np.uint8), 'test': np.array([5, 2], np.uint8)}
  np.savez_compressed(
    tmp_path / 'mnist/mnist.npz',
    **{f'{split}_labels': labels for split, labels in digits.items()},
    **{
      f'{split}_images': np.repeat(GRAY[split] * labels, 16).reshape(-1, 4, 4)
      for split, labels in digits.items()
    },
  )

  lines(
    tmp_path / 'emoji/emoji.jsonl',
    [
      {
        'file': 'red.png',
        'names': {'en': 'red', 'de': 'rot', 'fr': 'rouge'},
        'split': 'train',
      },
      {
        'file': 'green.png',
        'names': {'en': 'green', 'de': 'grün', 'fr': 'vert'},
        'split': 'test',
      },
    ],
  )
  lines(
    tmp_path / 'emoji/flags.jsonl',
    [{'file': 'clear.png', 'names': {'en': 'flag'}, 'split': 'train'}],
  )
  zipped(
    tmp_path / 'emoji/emoji64.zip',
    {'red.png': rgba((255, 0, 0, 255)), 'green.png': rgba((0, 255, 0, 255))},
  )
  zipped(tmp_path / 'emoji/flags64.zip', {'clear.png': rgba((0, 0, 0, 0))})

  lines(
    tmp_path / 'barista_speech/labels.jsonl',
    [
      {
        'file': f'{k}.wav',
        'intent': 'orderDrink',
        'slots': {'size': 'small', 'coffeeDrink': f'latte {k}'},
        'split': 'test' if k == 2 else 'train',
      }
      for k in range(3)
    ],
  )
  zipped(
    tmp_path / 'barista_speech/audio.zip', {f'{k}.wav': tone(k / 8) for k in range(3)}
  )

  for language in READY['text20'].LANGUAGES:
    (tmp_path / f'text20/train/{language}.txt').write_text(
      f'{language} one\n\n{language} a long third line\n'
    )
    for split in ('train', 'test'):
      text = ''.join(f'{language} {split} {number}\n' for number in (1, 2))
      (tmp_path / f'text20/parallel_ntrex/{language}.{split}.txt').write_text(text)
  return tmp_path


def opened(root, name, split='train', hosts=HOSTS, **asked):
  return READY[name](str(root), Asked(split, **asked), hosts)


def taken(example):
  """The parts of prompt and answer, and the answer's message."""
  user, assistant = example['messages']
  assert (user['role'], assistant['role']) == ('user', 'assistant')
  return user['content'][0], assistant['content'][0], assistant


def equal(a, b) -> bool:
  return pickle.dumps(a) == pickle.dumps(b)


@every_direction
def test_a_set_reads_the_same_in_another_process_and_in_threads(root, name, write):
  found = opened(root, name, write=write)
  first = list(found)
  assert len({example['id'] for example in first}) == len(first) > 1
  again = pickle.loads(pickle.dumps(found))
  with concurrent.futures.ThreadPoolExecutor(8) as threads:
    for example, other in zip(
      first * 8,
      threads.map(again.__getitem__, list(range(len(first))) * 8),
      strict=True,
    ):
      assert equal(example, other)
  assert equal(found[-1], first[-1]) and again.identity() == found.identity()
  with pytest.raises(IndexError):
    found[len(found)]


@every_direction
def test_splits_share_no_example(root, name, write):
  def contents(split):
    found = opened(root, name, split, write=write)
    parts = [
      part
      for k in range(len(found))
      for message in found.stored(k).get('messages', [found.stored(k)])
      for part in message['content']
    ]
    return {
      part.get('data', part.get('text'))
      for part in parts
      if part['type'] != 'text' or name == 'text20'
    }

  assert (
    len(contents('train'))
    == {'fsdd': 8, 'mnist': 10, 'emoji': 2, 'barista': 2, 'text20': 40}[name]
  )
  assert contents('test') and not contents('train') & contents('test')


@every_direction
def test_the_group_of_an_evaluation_names_the_set_and_needs_no_decoding(
  root, name, write
):
  found = opened(root, name, write=write)
  expected = {
    'fsdd-text': 'speech_to_text',
    'fsdd-audio': 'text_to_speech',
    'mnist-text': 'image_to_text',
    'mnist-image': 'text_to_image',
    'emoji-text': 'image_to_text',
    'emoji-image': 'text_to_image',
    'barista-text': 'speech_to_text',
  }.get(f'{name}-{write}')
  assert (
    case_of(found.encoded(0)).group
    == case_of(found[0]).group
    == (f'{name}_{expected}' if expected else name)
  )
  parts = [
    part
    for message in found.encoded(0).get('messages', [found.encoded(0)])
    for part in message['content']
  ]
  assert not {'data', 'pixels', 'wave'} & {key for part in parts for key in part}


def test_recordings_with_their_words_and_speakers(root):
  heard, said = opened(root, 'fsdd'), opened(root, 'fsdd', 'test', write='audio')
  assert len(heard) == 8 and len(said) == 4
  for example in heard:
    clip, word, answer = taken(example)
    assert (
      clip['wave'][0] * 16 == WORDS.index(word['text']) == WORDS.index(clip['label'])
    )
    assert f'_{clip["voice"]}_' in example['id'] and (
      answer['language'],
      answer['task'],
    ) == ('en', 'write')
    assert not example['id'].endswith('_0.wav') and 'voice' not in answer
  for example in said:
    word, clip, answer = taken(example)
    assert clip['wave'][0] * 16 == WORDS.index(word['text']) and example['id'].endswith(
      '_0.wav'
    )
    assert answer['voice'] == clip['voice'] and answer['task'] == 'speak'


def test_digits_with_their_words(root):
  for split, digits in (('train', list(range(10))), ('test', [5, 2])):
    for read, drawn, digit in zip(
      opened(root, 'mnist', split),
      opened(root, 'mnist', split, write='image'),
      digits,
      strict=True,
    ):
      image, word, answer = taken(read)
      assert (
        word['text'] == image['label'] == WORDS[digit] and answer['task'] == 'write'
      )
      np.testing.assert_array_equal(
        image['pixels'], np.full((4, 4, 3), np.float32(GRAY[split] * digit) / 255)
      )
      word, image, answer = taken(drawn)
      assert (
        word['text'] == WORDS[digit]
        and answer['task'] == 'draw'
        and 'language' not in answer
      )
      assert image['pixels'][0, 0, 0] == np.float32(GRAY[split] * digit) / 255


def test_pictures_with_their_names_in_each_language(root):
  named = [taken(example) for example in opened(root, 'emoji', languages=('en', 'de'))]
  assert [(name['text'], answer['language']) for _, name, answer in named] == [
    ('red', 'en'),
    ('rot', 'de'),
    ('flag', 'en'),
  ]
  assert [image['pixels'][0, 0].tolist() for image, *_ in named] == [
    [1, 0, 0],
    [1, 0, 0],
    [1, 1, 1],
  ]  # transparent is white
  name, image, answer = taken(
    opened(root, 'emoji', 'test', write='image', languages=('fr',))[0]
  )
  assert (name['text'], image['pixels'][0, 0].tolist(), answer['task']) == (
    'vert',
    [0, 1, 0],
    'draw',
  )


def test_orders_with_their_slots(root):
  for k, example in enumerate(opened(root, 'barista')):
    clip, text, _ = taken(example)
    assert (
      clip['wave'][0] == k / 8
      and text['text'] == f'orderDrink; coffeeDrink: latte {k}; size: small'
    )
    assert parse_order(text['text']) == (
      'orderDrink',
      {'coffeeDrink': f'latte {k}', 'size': 'small'},
    )
    assert example['meta'] == {'group': 'barista_speech_to_text', 'form': 'slots'}
  with pytest.raises(
    BadRecord, match=r'barista/train/0\.wav: sound of 0\.05 s, longer than'
  ):
    opened(root, 'barista', hosts=hosts_of(audio=AudioConfig(rate=500, seconds=0.04)))[
      0
    ]


@pytest.mark.parametrize(
  'text, order',
  [
    ('', ('', {})),
    ('orderDrink', ('orderDrink', {})),
    ('a;; :x; b:; c : d ;c: e; f: g: h', ('a', {'c': 'd', 'f': 'g: h'})),
  ],
)
def test_any_text_is_parsed(text, order):
  assert parse_order(text) == order


@pytest.mark.parametrize(
  'slots', [{'size': 'a; b'}, {'a:b': 'c'}, {'size': ''}], ids=str
)
def test_slots_that_would_not_come_back_are_refused(slots):
  with pytest.raises(ValueError, match='cannot be told apart'):
    order_text('x', slots)


def test_lines_and_translations(root):
  plain = opened(root, 'text20', languages=('en', 'de'))
  assert [example['content'][0]['text'] for example in plain] == [
    'en one',
    'en a long third line',
    'de one',
    'de a long third line',
  ]
  assert plain[1]['id'] == 'text20/train/en/3'
  assert len(opened(root, 'text20', languages=('en', 'de'), longest=6)) == 2
  pairs = opened(root, 'text20', 'test', read='en')
  assert len(pairs) == 19 * 2
  for example in pairs:
    source, target, answer = taken(example)
    assert (
      source['text'].startswith('en test')
      and answer['language'] != 'en'
      and answer['task'] == 'write'
    )
    assert target['text'] == source['text'].replace(
      'en test', f'{answer["language"]} test'
    )


@every_set
def test_identity_changes_with_the_data_and_with_what_is_asked(root, name):
  found = opened(root, name)
  before = found.identity()
  assert (
    before == opened(root, name).identity() != opened(root, name, 'test').identity()
  )
  path = root / FILES[name]
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  assert found.identity() != before


@every_set
def test_a_missing_file_is_one_line(root, name):
  (root / FILES[name]).unlink()
  with pytest.raises(
    UserError,
    match=rf'{FILES[name]}: cannot be used \(No such file .*config\.data\.root names the folder',
  ) as caught:
    opened(root, name)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['fsdd', 'mnist', 'emoji', 'barista'])
def test_a_file_that_is_no_archive_is_one_line(root, name):
  (root / FILES[name]).write_bytes(b'no archive')
  with pytest.raises(UserError, match=FILES[name]) as caught:
    opened(root, name)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('name', ['fsdd', 'emoji', 'barista'])
def test_a_damaged_member_is_a_bad_record_and_the_others_are_read(root, name):
  found = opened(root, name)
  path = root / FILES[name]
  with zipfile.ZipFile(path) as archive:
    first = (
      archive.infolist()[0]
      if name != 'fsdd'
      else archive.getinfo('recordings/3_ann_1.wav')
    )
  data = bytearray(path.read_bytes())
  data[first.header_offset + 30 + len(first.filename) + 20] ^= 255
  path.write_bytes(data)
  with pytest.raises(BadRecord, match=rf'^{name}/train/.*cannot be read \(Bad CRC-32'):
    opened(root, name)[0]
  assert opened(root, name)[len(found) - 1]['id']
  zipped(path, {'other': b''})
  with pytest.raises(BadRecord, match='is not in'):
    opened(root, name)[0]


@pytest.mark.parametrize(
  'file, text, message',
  [
    ('fsdd/index.csv', 'file,digit\nx,1\n', r'index\.csv: cannot be used \(KeyError'),
    (
      'fsdd/index.csv',
      'file,digit,speaker,split\nx,eleven,ann,train\n',
      r'index\.csv: cannot be used \(ValueError',
    ),
    (
      'emoji/flags.jsonl',
      '{"file": "x"',
      r'flags\.jsonl: cannot be used \(line 1 is not JSON',
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
def test_a_damaged_index_is_one_line(root, file, text, message):
  (root / file).write_bytes(text if isinstance(text, bytes) else text.encode())
  name = {'barista_speech': 'barista'}.get(file.split('/')[0], file.split('/')[0])
  with pytest.raises(UserError, match=message) as caught:
    opened(root, name)
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize(
  'name, asked, message',
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
def test_what_a_set_does_not_have_is_named(root, name, asked, message):
  with pytest.raises(UserError, match=message):
    opened(root, name, **asked)


def test_lines_that_are_not_parallel_are_refused(root):
  (root / 'text20/parallel_ntrex/de.train.txt').write_text('one\n')
  with pytest.raises(
    UserError,
    match=r'de\.train\.txt: cannot be used \(1 lines beside 2 of en\.train\.txt\)',
  ):
    opened(root, 'text20', read='en')


def config(root, source, **values) -> ConfigDict:
  return data_config(source=source, root=str(root), **values)


def test_one_line_of_a_config_names_a_set(root):
  assert [len(training_examples(config(root, name), HOSTS)) for name in READY] == [
    8,
    10,
    4,
    2,
    40,
  ]
  assert [len(held_out(config(root, name), HOSTS)) for name in READY] == [
    4,
    2,
    3,
    1,
    40,
  ]
  asked = config(root, 'emoji', language='de,fr', write='image')
  assert [taken(example)[0]['text'] for example in training_examples(asked, HOSTS)] == [
    'rot',
    'rouge',
  ]
  with pytest.raises(
    UserError,
    match=r'give the folder that holds barista_speech/, --config\.data\.root=DIR',
  ):
    training_examples(config('', 'barista'), HOSTS)


def test_a_speaker_is_left_out_and_the_codec_learns_the_others(root):
  asked = config(root, 'fsdd', write='audio', leave_out='bob')
  assert {
    taken(example)[2]['voice'] for example in training_examples(asked, HOSTS)
  } == {'ann'}
  assert len(training_payloads(asked, HOSTS, 'audio')) == 4


def test_a_mixture_holds_out_what_its_parts_do(root):
  parts = {
    'a': dict(source='mnist'),
    'b': dict(source='fsdd', write='audio', weight=2.0),
    'c': dict(source='barista', eval_split=''),
  }
  asked = config(root, 'mixture', eval_file='', sources=parts)
  assert len(training_examples(asked, HOSTS)) == 10 + 8 + 2
  found = held_out(asked, HOSTS)
  assert found.path == 'a, b' and [case_of(found.encoded(k)).group for k in (0, 2)] == [
    'mnist_image_to_text',
    'fsdd_text_to_speech',
  ]
  assert found[2]['id'].startswith('b/fsdd/test/')
  del asked.sources['a'], asked.sources['b']
  with pytest.raises(UserError, match="source='mixture' holds out nothing"):
    held_out(asked, HOSTS)


class Flags:
  """What `convert` gets from the command line."""

  kind, rate, module, read, write, language = '', 0, '', '', '', ''

  def __init__(self, **values):
    self.__dict__.update(values)


def test_a_set_is_converted(root, tmp_path):
  reader = reader_of(Flags(input='emoji:train', root=str(root), language='en,de'))
  convert(
    pickle.loads(pickle.dumps(reader)),
    tmp_path / 'out',
    shards=2,
    workers=1,
    said='it',
    timeout=60,
    log=lambda line: None,
  )
  found = {
    example['id']: example
    for example in ArrayRecordExamples(
      sorted((tmp_path / 'out').glob('*.array_record')), HOSTS
    )
  }
  expected = list(opened(root, 'emoji', languages=('en', 'de')))
  assert found.keys() == {example['id'] for example in expected}
  for example in expected:
    (image, *rest), (theirs, *other) = taken(example), taken(found[example['id']])
    np.testing.assert_array_equal(image['pixels'], theirs['pixels'])
    assert (
      rest[0] == other[0]
      and found[example['id']]['meta']['group'] == 'emoji_image_to_text'
    )
  with pytest.raises(UserError, match=r"^--input=emoji:valid: emoji: no split 'valid'"):
    reader_of(Flags(input='emoji:valid', root=str(root)))
  with pytest.raises(
    UserError,
    match='--input=emoji:train: give the folder that holds emoji/, --root=DIR',
  ):
    reader_of(Flags(input='emoji:train', root=''))
  with pytest.raises(
    UserError,
    match=r'^--input=mnist:train: .*: --root names the folder that holds mnist/',
  ):
    reader_of(Flags(input='mnist:train', root=str(tmp_path / 'nothing')))


# (set, what is asked) -> examples of train and test, as docs/ready_sources.md says.
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
@pytest.mark.parametrize('name, asked', COUNTS, ids=str)
def test_the_shared_data(name, asked):
  hosts = hosts_of(
    image=ImageConfig(64, 64, 3, 8), audio=AudioConfig(rate=8000, seconds=15.04)
  )
  train, test = (
    opened(SHARED, name, split, hosts, **dict(asked)) for split in ('train', 'test')
  )
  assert (len(train), len(test)) == COUNTS[name, asked]
  names = [
    {found.encoded(k)['id'].split('/', 2)[2] for k in range(len(found))}
    for found in (train, test)
  ]
  assert (
    name in ('mnist', 'text20') or not names[0] & names[1]
  )  # numbers of images and lines begin anew
  for found in (train, test):
    for k in range(0, len(found), len(found) // 20):
      example = found[k]
      parts = [
        part
        for message in example.get('messages', [example])
        for part in message['content']
      ]
      for part in parts:
        assert part['type'] != 'audio' or (
          len(part['wave']) > 800 and np.abs(part['wave']).max() > 0.01
        )
        assert part['type'] != 'image' or part['pixels'].std() > 0.01
        assert part['type'] != 'text' or part['text'].strip()


@pytest.mark.skipif(not SHARED.is_dir(), reason='the shared data are not here')
def test_labels_of_the_shared_data_are_those_of_the_files():
  """The digit stands in the name of a recording; a judge of one nearest image is right on most digits."""
  found = opened(SHARED, 'fsdd', 'test', HOSTS)
  for k in range(len(found)):
    example = found.encoded(k)
    digit, speaker, _ = example['id'].rpartition('/')[2].split('_')
    clip, word, _ = taken(example)
    assert (
      word['text'] == clip['label'] == WORDS[int(digit)] and clip['voice'] == speaker
    )
  train, test = (
    opened(SHARED, 'mnist', split, hosts_of(image=ImageConfig(7, 7, 1, 7)))
    for split in ('train', 'test')
  )
  known = [taken(train[k])[:2] for k in range(0, 3000)]
  pixels = np.stack([image['pixels'] for image, _ in known])
  right = [
    known[int(np.abs(pixels - image['pixels']).sum((1, 2, 3)).argmin())][1] == word
    for image, word, _ in (taken(test[k]) for k in range(200))
  ]
  assert np.mean(right) > 0.8
