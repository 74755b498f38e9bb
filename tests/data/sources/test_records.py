"""Tests that records hold the examples of JSON lines.

Records that are damaged or of another shape are refused, and never run as code.
"""

import json
import pickle

import msgpack
import numpy as np
import pytest
from samples import hosts_of

from omni_jax.data.sources import records
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.records import (
  ArrayRecordExamples,
  decode_example,
  encode_example,
  pack_example,
  unpack_example,
  write_array_record,
)
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes
from omni_jax.modalities.image.sizes import ImageConfig

HOSTS = hosts_of(image=ImageConfig(height=4, width=4, channels=1))


def same(left, right) -> bool:
  """Returns whether two examples agree, arrays included."""
  if isinstance(left, dict):
    if not isinstance(right, dict) or left.keys() != right.keys():
      return False
    return all(same(left[key], right[key]) for key in left)
  if isinstance(left, list):
    if not isinstance(right, list) or len(left) != len(right):
      return False
    return all(same(a, b) for a, b in zip(left, right, strict=True))
  if isinstance(left, np.ndarray):
    return np.array_equal(left, right)
  return left == right


@pytest.fixture
def lines(tmp_path):
  rng = np.random.default_rng(0)
  (tmp_path / 'a.png').write_bytes(png_bytes(rng.random((4, 4, 1))))
  (tmp_path / 'a.wav').write_bytes(wav_bytes(rng.uniform(-1, 1, 500), 8000))
  image = {'type': 'image', 'path': 'a.png'}
  sound = {'type': 'audio', 'path': 'a.wav'}
  answer = {
    'role': 'assistant',
    'language': 'sk',
    'voice': 'george',
    'content': [sound],
  }
  examples = []
  for n in range(5):
    question = {'type': 'text', 'text': f'čo? {n}'}
    user = {'role': 'user', 'content': [image, question]}
    examples.append({'id': f'chat {n}', 'messages': [user, answer]})
  examples.append({'content': [{'type': 'text', 'text': 'plain'}, sound]})
  data = '\n'.join(json.dumps(example) for example in examples)
  (tmp_path / 'data.jsonl').write_text(data)
  return JsonLines(tmp_path / 'data.jsonl', HOSTS)


def records_of(lines) -> list[bytes]:
  return [encode_example(lines.encoded(n), lines.read_file) for n in range(len(lines))]


def test_a_record_decodes_to_its_example(lines):
  for n, record in enumerate(records_of(lines)):
    assert same(decode_example(record, HOSTS), lines[n])


def test_array_records_of_several_files_hold_the_examples(lines, tmp_path):
  records = records_of(lines)
  paths = [tmp_path / f'{n}.array_record' for n in range(3)]
  assert write_array_record(paths[0], records[:1]) == 1
  assert write_array_record(paths[1], records[1:4]) == 3
  assert write_array_record(paths[2], records[4:]) == 2
  examples = ArrayRecordExamples(paths, HOSTS)
  assert len(examples) == 6
  for n in (5, 0, 3, 1, 4, 2, -1):
    assert same(examples[n], lines[n])
  for outside in (6, -7):
    with pytest.raises(IndexError):
      examples[outside]
  assert same(pickle.loads(pickle.dumps(examples))[4], lines[4])


def test_records_without_an_id_are_named_by_file_and_number(tmp_path):
  path = tmp_path / 'a.array_record'
  records = [encode_example({'content': text}, lambda _: b'') for text in 'ab']
  write_array_record(path, records)
  first, second = ArrayRecordExamples(str(path), HOSTS)
  assert first['id'] == 'a.array_record:0'
  assert second['id'] == 'a.array_record:1'


def test_a_failed_write_leaves_nothing(tmp_path):
  def records():
    yield b'one'
    raise BadRecord('no such file')

  with pytest.raises(BadRecord):
    write_array_record(tmp_path / 'a.array_record', records())
  assert not list(tmp_path.iterdir())
  with pytest.raises(UserError, match='cannot be written'):
    write_array_record(tmp_path / 'no' / 'folder', [b'one'])


class Evil:
  """Would run code if a record were unpickled."""

  def __reduce__(self):
    return (pytest.fail, ('a record was run',))


@pytest.mark.parametrize(
  'record, reason',
  [
    (b'', 'not a msgpack record'),
    (b'\xc1', 'not a msgpack record'),
    (b'\x91' * 100_000, 'not a msgpack record'),
    (b'\xdf\xff\xff\xff\xff', 'not a msgpack record'),
    (pickle.dumps(Evil()), 'not a msgpack record'),
    (msgpack.packb([1]), 'of type list'),
    (msgpack.packb({1: 2}), 'not a msgpack record'),
    (msgpack.packb(msgpack.ExtType(5, b'x')), 'of type ExtType'),
    (
      msgpack.packb({'content': [{'type': 'text', 'text': b'bytes'}]}),
      'of type bytes, not a string',
    ),
    (
      msgpack.packb({'content': [{'type': 'image', 'data': 'string'}]}),
      'of type str, not bytes',
    ),
    (
      msgpack.packb({'content': [{'type': 'image', 'path': '/etc/passwd'}]}),
      'missing data',
    ),
    (
      msgpack.packb({'id': 'me', 'content': [{'type': 'image', 'data': b'broken'}]}),
      'me: not an image',
    ),
  ],
  ids=lambda value: repr(value)[:30],
)
def test_bad_records_are_refused(record, reason):
  with pytest.raises(BadRecord, match=reason):
    decode_example(record, HOSTS)


def test_a_record_that_is_too_large_is_neither_written_nor_read(monkeypatch):
  example = {'id': '', 'content': [{'type': 'text', 'text': 'more than ten bytes'}]}
  record = pack_example(example)
  monkeypatch.setattr(records, 'MAX_RECORD', 10)
  for use in (lambda: pack_example(example), lambda: unpack_example(record)):
    with pytest.raises(BadRecord, match='record of .* bytes, more than the 10 allowed'):
      use()


def test_bad_records_of_a_file_are_named(tmp_path):
  write_array_record(tmp_path / 'a.array_record', [b'broken'])
  with pytest.raises(BadRecord, match=r'^a\.array_record:0: not a msgpack record'):
    ArrayRecordExamples(tmp_path / 'a.array_record', HOSTS)[0]


def test_unusable_files_are_user_errors(tmp_path):
  (tmp_path / 'text').write_text('not an ArrayRecord file ' * 10_000)
  write_array_record(tmp_path / 'empty', [])
  for paths, message in (
    (tmp_path / 'none', 'no such file'),
    (tmp_path / 'text', 'not an ArrayRecord file'),
    (tmp_path / 'empty', 'holds no examples'),
    ([], 'list of paths is empty'),
  ):
    with pytest.raises(UserError, match=message):
      ArrayRecordExamples(paths, HOSTS)
