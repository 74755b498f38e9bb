"""Tests which examples and payloads the sources give for training and evaluation."""

import json
from types import SimpleNamespace

import ml_collections
import numpy as np
import pytest
from samples import data_config, hosts_of, tiny_run

from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.local import convert
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.payloads import payload_of
from omni_jax.data.sources.table import (
  converted_folders,
  held_out,
  training_examples,
  training_payloads,
)
from omni_jax.data.sources.text_file import TextFile
from omni_jax.errors import UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.image.files import png_bytes
from omni_jax.sequence.example import MEDIA

HOSTS = hosts_of()


def sound(name: str, voice: str) -> dict:
  return {'type': 'audio', 'path': f'{name}.wav', 'label': name, 'voice': voice}


def chat(given: dict, answer: dict, **controls: str) -> dict:
  return {
    'messages': [
      {'role': 'user', 'content': [given]},
      {'role': 'assistant', **controls, 'content': [answer]},
    ]
  }


def config(root, source='jsonl', **changes) -> ml_collections.ConfigDict:
  return data_config(source=source, root=str(root), **changes)


@pytest.fixture
def root(tmp_path):
  """Returns a folder whose train.jsonl has three rows.

  Row 0 hears theo, row 1 hears ann and speaks as theo, and row 2 only hears ann.
  """
  for number, name in enumerate(('one', 'two', 'three')):
    wave = np.full(100, (number + 1) / 8, np.float32)
    (tmp_path / f'{name}.wav').write_bytes(wav_bytes(wave, 8000))
  text = {'type': 'text', 'text': 'x'}
  rows = [
    chat(sound('one', 'theo'), text),
    chat(sound('two', 'ann'), sound('three', 'theo'), voice='theo'),
    chat(sound('two', 'ann'), text),
  ]
  write_lines(tmp_path / 'train.jsonl', rows)
  return tmp_path


def write_lines(path, rows: list[dict]) -> None:
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))


def test_labels_and_voices_survive_decoding(root):
  part = JsonLines(root / 'train.jsonl', HOSTS)[0]['messages'][0]['content'][0]
  assert (part['label'], part['voice']) == ('one', 'theo')
  assert 'path' not in part


@pytest.mark.parametrize('voice, rows', [('theo', [2]), ('ann', [0])])
def test_a_voice_is_left_out_whether_it_is_heard_or_speaks(root, voice, rows):
  settings = config(root)
  everything = training_examples(settings, HOSTS)
  settings.leave_out = voice
  rest = training_examples(settings, HOSTS)
  assert [example['id'] for example in rest] == [everything[row]['id'] for row in rows]


def test_a_voice_that_nobody_has_is_refused(root):
  settings = config(root)
  settings.leave_out = 'nobody'
  with pytest.raises(UserError, match="leave_out='nobody': none of the 3 examples"):
    training_examples(settings, HOSTS)


def test_the_codec_learns_the_speech_to_be_written(root):
  (wave,) = training_payloads(config(root), HOSTS, 'audio')
  np.testing.assert_allclose(wave, 3 / 8, atol=1e-4)


def test_where_nothing_speaks_the_codec_learns_what_is_heard(root):
  settings = config(root)
  settings.leave_out = 'theo'
  (wave,) = training_payloads(settings, HOSTS, 'audio')
  np.testing.assert_allclose(wave, 2 / 8, atol=1e-4)


def test_sounds_that_cannot_be_used_are_named(root):
  (root / 'three.wav').write_bytes(b'no sound')
  with pytest.raises(UserError, match=r'1 are refused, first: three\.wav'):
    training_payloads(config(root), HOSTS, 'audio')


def test_a_text_file_is_cut_into_pieces(tmp_path):
  """Training reads the first 90 of 100 characters, in pieces that overlap."""
  text = 'abcdefghij' * 10
  (tmp_path / 'input.txt').write_text(text)
  train = TextFile(tmp_path / 'input.txt', length=4, train=True)
  rest = TextFile(tmp_path / 'input.txt', length=4, train=False)

  def text_of(piece):
    return piece['content'][0]['text']

  assert len(train) == 87
  assert [text_of(train[k]) for k in (0, 1, 86)] == ['abcd', 'bcde', 'ghij']
  assert [text_of(piece) for piece in rest] == ['abcd', 'efgh']
  assert all(piece['open'] for piece in rest)
  assert len({piece['id'] for piece in train}) == 87


@pytest.mark.parametrize(
  'content, length',
  [(None, 4), (b'\xff\xfe', 1), (b'short', 40)],
  ids=['missing', 'binary', 'short'],
)
def test_text_files_that_cannot_be_used_are_user_errors(tmp_path, content, length):
  if content is not None:
    (tmp_path / 'input.txt').write_bytes(content)
  with pytest.raises(UserError, match=r'input\.txt'):
    TextFile(tmp_path / 'input.txt', length=length, train=True)


def test_folders_of_a_conversion_are_training_data(root, tmp_path):
  convert(
    JsonLinesReader(str(root / 'train.jsonl')),
    root / 'train',
    shards=2,
    workers=1,
    input_name='it',
    timeout=60,
    log=lambda line: None,
  )
  settings = config(root, 'array_record', train_file='train')
  examples = training_examples(settings, HOSTS)
  assert len(examples) == 3
  ids = {examples[k]['id'] for k in range(3)}
  assert ids == {'train.jsonl:1', 'train.jsonl:2', 'train.jsonl:3'}
  clip = examples.encoded(0)['messages'][0]['content'][0]
  assert clip['data'].startswith(b'RIFF')
  assert len(training_payloads(settings, HOSTS, 'audio')) == 3
  settings.train_file = 'nothing'
  with pytest.raises(UserError, match='nothing: no such file'):
    training_examples(settings, HOSTS)


def test_a_mixture_joins_the_examples_and_sounds_of_its_sources(root):
  part = dict(source='jsonl')
  sources = dict(a=part | dict(weight=1.0), b=part | dict(leave_out='theo', weight=3.0))
  settings = config(root, 'mixture', sources=sources)
  examples = training_examples(settings, HOSTS)
  assert len(examples) == 4
  assert examples.names == ('a', 'b')
  assert examples.shares() == [0.25, 0.75]
  assert examples[3]['id'].startswith('b/')
  # Every second example is read, so both sources are used.
  assert len(training_payloads(settings, HOSTS, 'audio', limit=2)) == 2


def test_clips_are_spread_over_the_records(root):
  part = dict(source='jsonl')
  sources = dict(a=part, b=part | dict(extra=0, leave_out='ann'))
  settings = config(root, 'mixture', sources=sources)
  waves = training_payloads(settings, HOSTS, 'audio', limit=4)
  assert len(waves) == 3


def test_a_small_source_beside_a_large_one_is_used_completely(root):
  """Equally many examples of each are read; those of the text file have no sound."""
  (root / 'long.txt').write_text('abcdefghij' * 1000)
  text = dict(source='text', train_file='long.txt', piece=4)
  settings = config(root, 'mixture', sources=dict(a=text, b=dict(source='jsonl')))
  assert len(training_payloads(settings, HOSTS, 'audio', limit=3)) == 3


def test_an_autoencoder_of_images_gets_what_is_to_be_drawn(tmp_path):
  """There are two drawings, one of them twice, and a picture that is only read."""
  for level, name in enumerate(('seen', 'drawn', 'other'), 1):
    pixels = np.full((4, 4, 1), level / 4, np.float32)
    (tmp_path / f'{name}.png').write_bytes(png_bytes(pixels))

  def image(name):
    return {'type': 'image', 'path': f'{name}.png'}

  rows = [
    chat(image('seen'), image('drawn')),
    chat(image('other'), image('drawn')),
    chat(image('drawn'), image('other')),
  ]
  write_lines(tmp_path / 'train.jsonl', rows)
  images = training_payloads(config(tmp_path), HOSTS, 'image')
  assert sorted(round(4 * float(pixels.mean())) for pixels in images) == [2, 3]
  with pytest.raises(UserError, match='holds no audio: the stage'):
    training_payloads(config(tmp_path), HOSTS, 'audio')


def test_the_digits_give_all_of_their_images():
  images = training_payloads(tiny_run().data, HOSTS, 'image')
  assert len(images) > 1000
  assert images[0].shape == (8, 8, 1)


def test_the_payload_of_a_part_is_under_the_key_of_its_medium(monkeypatch):
  monkeypatch.setitem(MEDIA, 'gene', SimpleNamespace(key='bases'))
  assert payload_of({'type': 'audio', 'wave': 1}) == 1
  assert payload_of({'type': 'image', 'pixels': 2}) == 2
  assert payload_of({'type': 'gene', 'bases': 3}) == 3


def test_a_mixture_holds_out_only_the_files_that_its_parts_name(root):
  (root / 'test.jsonl').write_text((root / 'train.jsonl').read_text())
  parts = dict(a=dict(source='jsonl', eval_file='test.jsonl'), b=dict(source='jsonl'))
  settings = config(root, 'mixture', eval_file='', sources=parts)
  examples = held_out(settings, HOSTS)
  assert examples.names == ('a',)
  assert len(examples) == 3
  settings.eval_file = 'train.jsonl'
  assert held_out(settings, HOSTS).path == root / 'train.jsonl'


def test_folders_within_a_mixture_have_full_paths(root):
  inner = dict(b=dict(source='array_record', train_file='two,three', eval_file='four'))
  sources = dict(
    a=dict(source='array_record', train_file='one'),
    c=dict(source='mixture', root='elsewhere', sources=inner),
    d=dict(source='text'),
  )
  settings = config(root, 'mixture', sources=sources)
  train_folders = [f'{root}/one', 'elsewhere/two', 'elsewhere/three']
  assert converted_folders(settings) == train_folders
  assert converted_folders(settings, 'eval_file') == ['elsewhere/four']
