"""Tests JSON lines.

They have the chat or the plain form, mistakes are named by line, media are decoded on
access and must lie inside the folder.
"""

import json
import os
import pickle

import numpy as np
import pytest
from samples import hosts_of

from omni_jax.data.sources import jsonl
from omni_jax.data.sources.jsonl import JsonLines, MediaCache, read
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes
from omni_jax.modalities.image.sizes import ImageConfig

HOSTS = hosts_of(image=ImageConfig(height=4, width=4, channels=1))
PIXELS = (np.arange(16).reshape(4, 4, 1) / 255).astype(np.float32)
WAVE = (np.arange(100) / 32768).astype(np.float32)
CHAT = {
  'messages': [
    {
      'role': 'user',
      'content': [
        {'type': 'image', 'path': 'a.png'},
        {'type': 'text', 'text': 'what is it?'},
      ],
    },
    {
      'role': 'assistant',
      'language': 'de',
      'task': 'write',
      'voice': 'george',
      'content': [
        {'type': 'text', 'text': 'sieben'},
        {'type': 'audio', 'path': 'sub/seven.wav'},
      ],
    },
  ]
}
PLAIN = {
  'id': 'mine',
  'content': [{'type': 'text', 'text': 'größer'}, {'type': 'image', 'path': 'a.png'}],
}


@pytest.fixture
def folder(tmp_path):
  (tmp_path / 'sub').mkdir()
  (tmp_path / 'a.png').write_bytes(png_bytes(PIXELS))
  (tmp_path / 'sub' / 'seven.wav').write_bytes(wav_bytes(WAVE, 8000))
  return tmp_path


def write(folder, *lines):
  """Writes lines, given as text or as objects, and returns the path of the file."""
  path = folder / 'data.jsonl'
  text = ''
  for line in lines:
    text += line if isinstance(line, str) else json.dumps(line)
    text += '\n'
  path.write_text(text, 'utf-8')
  return path


def user(content) -> dict:
  return {'messages': [{'role': 'user', 'content': content}]}


def test_a_chat_is_read_with_its_media_and_controls(folder):
  [example] = read(write(folder, CHAT), HOSTS)
  assert example['id'] == 'data.jsonl:1'
  question, answer = example['messages']
  assert answer['role'] == 'assistant'
  assert answer['language'] == 'de'
  assert answer['task'] == 'write'
  assert answer['voice'] == 'george'
  assert set(question) == {'role', 'content'}
  assert question['content'][1] == {'type': 'text', 'text': 'what is it?'}
  np.testing.assert_array_equal(question['content'][0]['pixels'], PIXELS)
  np.testing.assert_array_equal(answer['content'][1]['wave'], WAVE)


def test_plain_form_strings_blank_lines_and_a_byte_order_mark_are_read(folder):
  first = '\ufeff' + json.dumps(PLAIN, ensure_ascii=False)
  path = write(folder, first, '', '  ', user('hello'), PLAIN | {'id': 7})
  lines = JsonLines(path, HOSTS)
  assert len(lines) == 3
  assert [example['id'] for example in lines] == ['mine', 'data.jsonl:4', '7']
  assert lines[0]['content'][0]['text'] == 'größer'
  assert lines[1]['messages'][0]['content'] == [{'type': 'text', 'text': 'hello'}]


def test_lines_are_a_sequence_with_random_access(folder):
  contents = [{'content': str(n)} for n in range(5)]
  lines = JsonLines(write(folder, *contents), HOSTS)
  texts = [lines[n]['content'][0]['text'] for n in (3, 0, -1, np.int64(2))]
  assert texts == ['3', '0', '4', '2']
  for outside in (5, -6):
    with pytest.raises(IndexError):
      lines[outside]


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"content": "a"', 'not JSON at character'),
    ('[' * 100_000, 'not usable JSON'),
    ('[1]', 'of type list, not an object'),
    ({}, 'exactly one of'),
    ({'content': 'a', 'messages': []}, 'exactly one of'),
    (
      {'content': 'a', 'langauge': 'de'},
      'unknown langauge; the known keys are messages, content, id, meta; fields of your own',
    ),
    ({'content': []}, 'neither a string nor a list'),
    ({'content': 'a', 'id': 1.5}, '"id" is 1.5'),
    ({'messages': []}, 'at least one message'),
    (
      {'messages': [{'role': 'robot', 'content': 'a'}]},
      r"messages\[0\]: role 'robot' is not one of user",
    ),
    ({'messages': [{'role': 'user'}]}, r'messages\[0\]: missing content'),
    (
      {'messages': [{'role': 'user', 'content': 'a', 'task': 3}]},
      '"task" is of type int',
    ),
    ({'messages': [{'role': 'user', 'content': 'a', 'voice': ''}]}, 'empty voice'),
    (
      user([{'type': 'smell', 'path': 'a'}]),
      r"content\[0\]: type 'smell' is not one of text, image, audio",
    ),
    (user([{'type': ['text']}]), 'is not one of text'),
    (user([{'type': 'image', 'path': 'a.png', 'alt': 'x'}]), 'unknown alt'),
    (user([{'type': 'image', 'data': 'AAAA'}]), 'missing path'),
    (user([{'type': 'text', 'text': None}]), 'of type NoneType, not a string'),
    ('{"content": "\\ud800"}', 'surrogate'),
    (user([{'type': 'image', 'path': '/etc/passwd'}]), 'leaves the folder'),
    (user([{'type': 'image', 'path': 'sub/../../a.png'}]), 'leaves the folder'),
    (user([{'type': 'image', 'path': 'gs://bucket/a.png'}]), 'leaves the folder'),
    (user([{'type': 'image', 'path': 'sub\\a.png'}]), 'backslashes'),
    (user([{'type': 'image', 'path': 'a\0.png'}]), 'not a file name'),
    (user([{'type': 'image', 'path': ''}]), 'not a file name'),
  ],
  ids=lambda value: str(value)[:40],
)
def test_the_error_of_a_mistake_names_file_and_line(folder, line, message):
  path = write(folder, {'content': 'fine'}, '', line)
  with pytest.raises(UserError, match=rf'data\.jsonl line 3: .*{message}'):
    JsonLines(path, HOSTS)


def test_custom_fields_are_accepted_under_meta(folder):
  [example] = read(write(folder, {'content': 'a', 'meta': {'from': 'web'}}), HOSTS)
  assert example['id'] == 'data.jsonl:1'


def test_unusable_files_are_user_errors(folder, monkeypatch):
  for path in (folder / 'none.jsonl', folder):
    with pytest.raises(UserError, match='cannot be read'):
      JsonLines(path, HOSTS)
  with pytest.raises(UserError, match='holds no examples'):
    JsonLines(write(folder, '', '   '), HOSTS)
  (folder / 'latin.jsonl').write_bytes(b'{"content": "caf\xe9"}\n')
  with pytest.raises(UserError, match='line 1: not UTF-8 at byte 16'):
    JsonLines(folder / 'latin.jsonl', HOSTS)
  monkeypatch.setattr(jsonl, 'MAX_LINE', 50)
  with pytest.raises(UserError, match='line 2: longer than 50 bytes'):
    JsonLines(write(folder, {'content': 'a'}, {'content': 'a' * 50}), HOSTS)


def test_bad_media_are_bad_records_on_access_only(folder):
  (folder / 'broken.png').write_bytes(b'not a picture')
  broken = user([{'type': 'image', 'path': 'broken.png'}])
  missing = user([{'type': 'audio', 'path': 'none.wav'}])
  lines = JsonLines(write(folder, broken, missing, CHAT), HOSTS)
  for index, reason in ((0, 'broken.png: not an image'), (1, 'none.wav: no such file')):
    with pytest.raises(BadRecord, match=reason) as error:
      lines[index]
    assert error.value.id == f'data.jsonl:{index + 1}'
  assert lines[2]['messages']


def test_links_may_not_leave_the_folder(folder, tmp_path_factory):
  outside = tmp_path_factory.mktemp('outside')
  (outside / 'secret.png').write_bytes(png_bytes(PIXELS))
  os.symlink(outside / 'secret.png', folder / 'link.png')
  os.symlink(outside, folder / 'linked')
  os.symlink('a.png', folder / 'inside.png')
  paths = ('link.png', 'linked/secret.png', 'inside.png')
  examples = [user([{'type': 'image', 'path': path}]) for path in paths]
  lines = JsonLines(write(folder, *examples), HOSTS)
  for index in (0, 1):
    with pytest.raises(BadRecord, match='link that leaves the folder'):
      lines[index]
  assert lines[2]['messages'][0]['content'][0]['pixels'].shape == (4, 4, 1)


def test_a_folder_may_be_reached_by_a_link(folder, tmp_path_factory):
  link = tmp_path_factory.mktemp('link') / 'data'
  os.symlink(folder, link)
  write(folder, CHAT)
  assert len(read(link / 'data.jsonl', HOSTS)) == 1


def test_a_file_that_changed_is_a_bad_record(folder):
  lines = JsonLines(write(folder, CHAT, CHAT), HOSTS)
  write(folder, {'content': 'now something else entirely'})
  with pytest.raises(BadRecord, match='has changed since it was opened'):
    lines[1]


def test_decoded_media_are_kept_and_cannot_be_written_to(folder, monkeypatch):
  lines = JsonLines(write(folder, CHAT, PLAIN), HOSTS)
  first = lines[0]['messages'][0]['content'][0]
  monkeypatch.setattr(JsonLines, 'read_file', lambda *_: pytest.fail('read twice'))
  second = lines[1]['content'][1]
  assert second['pixels'] is first['pixels'] and second is not first
  with pytest.raises(ValueError, match='read-only'):
    first['pixels'][0] = 1


def test_the_cache_drops_the_least_recently_used_medium():
  cache = MediaCache(max_bytes=1000)
  decoded = []

  def get(name):
    def decode():
      decoded.append(name)
      return {'type': 'audio', 'wave': np.zeros(100, np.float32)}

    cache.get(('audio', name), decode)

  for name in 'abacab':  # 400 bytes each, so two fit
    get(name)
  assert decoded == ['a', 'b', 'c', 'b']


def test_pickled_lines_are_the_same(folder):
  lines = JsonLines(write(folder, CHAT), HOSTS)
  lines[0]
  copy = pickle.loads(pickle.dumps(lines))
  assert len(copy) == 1 and copy[0]['id'] == 'data.jsonl:1'
