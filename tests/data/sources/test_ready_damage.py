"""What is missing in a ready set, damaged or unknown is reported in one line."""

import zipfile

from data.sources.ready_sets import every_set, FILES, open_set, write_zip
import pytest
from samples import make_unreadable

from omni_jax.errors import BadRecord, UserError


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
