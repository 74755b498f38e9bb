"""Tests the pairing of FSDD and MNIST as JSON lines, on small stand-ins.

Splits are kept apart, digits agree, and nothing is left half-written.
"""

import csv
import pathlib
import shutil
import subprocess
import sys
from typing import NamedTuple
import zipfile

import numpy as np
import pytest
from samples import hosts_of, make_unreadable

from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.spoken_digits import build, KINDS, WORDS
from omni_jax.errors import UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image.sizes import ImageConfig

HOSTS = hosts_of(image=ImageConfig(height=28, width=28), audio=AudioConfig(seconds=3.2))
SETTINGS = dict(images=600, strings=50, seconds=1.0, string_seconds=3.2, seed=0)
SPEAKERS = ('george', 'theo')
# (digit, speaker, take) of two unusable clips.
TOO_LONG = (3, 1, 8)
UNREADABLE = (4, 0, 8)


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Returns a folder with both data sets in small.

  Pixels and samples tell the digit; one clip is too long, one unreadable.
  """
  folder = tmp_path_factory.mktemp('source')
  (folder / 'fsdd').mkdir()
  (folder / 'mnist').mkdir()
  write_recordings(folder)
  write_images(folder)
  return folder


def write_recordings(folder):
  with (
    zipfile.ZipFile(folder / 'fsdd' / 'recordings.zip', 'w') as archive,
    open(folder / 'fsdd' / 'index.csv', 'w', newline='') as index,
  ):
    rows = csv.writer(index)
    rows.writerow(
      ('file', 'digit', 'speaker', 'index', 'split', 'sample_rate', 'samples', 'sha256')
    )
    for digit, speaker, take in np.ndindex(10, 2, 10):
      name = f'{digit}_{SPEAKERS[speaker]}_{take}.wav'
      samples = 9000 if (digit, speaker, take) == TOO_LONG else 100
      data = wav_bytes(np.full(samples, digit / 16, np.float32), 8000)
      if (digit, speaker, take) == UNREADABLE:
        data = data[:60]
      archive.writestr(f'recordings/{name}', data)
      split = 'test' if take < 5 else 'train'
      row = (name, digit, SPEAKERS[speaker], take, split, 8000, samples, '')
      rows.writerow(row)


def write_images(folder):
  arrays = {}
  for part, count in (('train', 700), ('test', 100)):
    labels = np.arange(count) % 10
    images = np.broadcast_to(labels[:, None, None] * 10, (count, 28, 28))
    arrays[f'{part}_labels'] = labels.astype(np.uint8)
    arrays[f'{part}_images'] = images.astype(np.uint8)
  np.savez(folder / 'mnist' / 'mnist.npz', **arrays)


class Output(NamedTuple):
  """The folder that `build` writes, and the summary that it returns."""

  folder: pathlib.Path
  summary: str


@pytest.fixture(scope='module')
def output(source, tmp_path_factory):
  folder = tmp_path_factory.mktemp('output') / 'digits'
  return Output(folder, build(source, folder, **SETTINGS))


def parts(example) -> list[dict]:
  return [part for message in example['messages'] for part in message['content']]


def encoded_examples(output, name) -> list[dict]:
  """Returns the examples of a file of the output folder, nothing decoded."""
  lines = JsonLines(output.folder / f'{name}.jsonl', HOSTS)
  return [lines.encoded(n) for n in range(len(lines))]


def first_parts(output, name) -> list[dict]:
  return [parts(example)[0] for example in encoded_examples(output, name)]


def digits_of(part) -> list[int]:
  """Returns the digits that a text or a label names, checked against the medium."""
  if part['type'] == 'text' and part['text'].isdigit():
    return [int(part['text'])]
  words = part['text'] if part['type'] == 'text' else part['label']
  digits = [WORDS.index(word) for word in words.split()]
  if part['type'] == 'image':
    assert round(part['pixels'].max() * 25.5) == digits[0]
  if part['type'] == 'audio':  # every recording of the stand-ins has 100 samples
    levels = part['wave'].reshape(-1, 100).mean(axis=1)
    assert np.round(levels * 16).astype(int).tolist() == digits
  return digits


@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_every_row_can_be_read_and_agrees_in_its_digit(output, split):
  for example in JsonLines(output.folder / f'{split}.jsonl', HOSTS):
    assert len({tuple(digits_of(part)) for part in parts(example)}) == 1
    assert example['meta'] == {'group': example['id'].split('/')[1]}


def test_strings_join_two_to_five_recordings_of_one_speaker(output):
  strings = []
  for example in JsonLines(output.folder / 'train.jsonl', HOSTS):
    if example['meta']['group'] == 'string_to_text':
      strings.append(parts(example)[0])
  assert {len(digits_of(part)) for part in strings} == {2, 3, 4, 5}
  assert {part['voice'] for part in strings} == set(SPEAKERS)
  splits = {path.name.split('_')[0] for path in (output.folder / 'strings').iterdir()}
  assert splits == {'train', 'valid', 'test'}


def test_a_speaker_file_holds_all_recordings_of_one_speaker(output):
  lines = JsonLines(output.folder / 'speaker_theo.jsonl', HOSTS)
  clips = [parts(example)[0] for example in lines]
  assert {clip['voice'] for clip in clips} == {'theo'}
  paths = paths_of(output, 'speaker_theo')
  assert len(set(paths)) == len(clips) == 99  # one is too long
  assert paths_of(output, 'speakers') == paths_of(output, 'speaker_george') + paths


def paths_of(output, name) -> list[str]:
  return [part['path'] for part in first_parts(output, name)]


def test_every_direction_has_its_share_and_its_controls(output):
  counts = dict.fromkeys(KINDS, 0)
  for example in encoded_examples(output, 'train'):
    name = example['id'].split('/')[1]
    kind = KINDS[name]
    counts[name] += 1
    question, answer = example['messages']
    assert (answer['language'], answer['task']) == ('en', kind.task)
    assert [part['type'] for part in answer['content']] == list(kind.reply)
    medium = question['content'][0]
    types = {'numeral': 'text', 'string': 'audio'}
    assert medium['type'] == types.get(kind.question, kind.question)
    voices = []
    for part in answer['content']:
      if part['type'] == 'audio':
        voices.append(part['path'].split('_')[1])
    assert voices == ([answer['voice']] if 'voice' in answer else [])
    # The answer has another handwriting, or another recording.
    assert medium not in answer['content']
  assert counts == {name: round(600 * kind.share) for name, kind in KINDS.items()}


def test_splits_share_no_medium_and_takes_follow_the_official_split(output):
  takes = {'train': {8, 9}, 'valid': {5, 6, 7}, 'test': {0, 1, 2, 3, 4}}
  paths = {}
  for split in takes:
    paths[split] = set()
    for example in encoded_examples(output, split):
      paths[split] |= {part['path'] for part in parts(example) if 'path' in part}
    for path in paths[split]:
      if path.startswith('speech/'):
        take = path.removesuffix('.wav').split('_')[2]
        assert int(take) in takes[split]
  assert not paths['train'] & paths['valid']
  assert not paths['valid'] & paths['test']
  assert not paths['train'] & paths['test']


def test_held_out_sources_are_read_once(output):
  paths = []
  for example in encoded_examples(output, 'test'):
    if '/speech_to_text/' in example['id']:
      paths.append(parts(example)[0]['path'])
  assert len(paths) == len(set(paths)) == 30


def test_what_was_left_out_is_counted(output):
  assert 'left out 1 clips longer than 1.0 s' in output.summary
  assert 'left out 1 unreadable clips' in output.summary
  assert 'seconds of at least 3.2' in output.summary
  assert not (output.folder / 'speech' / '3_theo_8.wav').exists()


def test_the_seed_decides_which_media_are_paired(source, output, tmp_path):
  build(source, tmp_path / 'same', **SETTINGS)
  build(source, tmp_path / 'other', **SETTINGS | dict(seed=1))
  first = (output.folder / 'train.jsonl').read_bytes()
  assert (tmp_path / 'same' / 'train.jsonl').read_bytes() == first
  assert (tmp_path / 'other' / 'train.jsonl').read_bytes() != first


@pytest.mark.parametrize(
  'mistake, message',
  [
    (dict(images=5000), '--images=5000: .* has 700 training images'),
    (dict(strings=1), '--strings=1'),
    (dict(string_seconds=0.5), '--string_seconds=0.5'),
    (dict(images=0), '--images=0'),
    (dict(images=20), 'raise --images'),
    (dict(seconds=0.001), 'no clips of zero'),
    (dict(seconds=-1.0), '--seconds=-1.0'),
    (dict(seed=-1), '--seed=-1'),
  ],
  ids=str,
)
def test_mistakes_are_user_errors_and_leave_nothing(source, tmp_path, mistake, message):
  with pytest.raises(UserError, match=message):
    build(source, tmp_path / 'out', **SETTINGS | mistake)
  assert not list(tmp_path.iterdir())


def test_sources_that_are_missing_or_broken_are_user_errors(source, tmp_path):
  with pytest.raises(UserError, match=r'recordings\.zip.*FileNotFoundError'):
    build(tmp_path, tmp_path / 'out', **SETTINGS | dict(images=10))
  (tmp_path / 'fsdd').symlink_to(source / 'fsdd')
  (tmp_path / 'mnist').mkdir()
  for content in (b'', b'not an archive', b'PK\x03\x04 nor is this'):
    (tmp_path / 'mnist' / 'mnist.npz').write_bytes(content)
    with pytest.raises(UserError, match=r'mnist\.npz cannot be used'):
      build(tmp_path, tmp_path / 'out', **SETTINGS | dict(images=10))
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize('field', ['encrypted', 'compression'])
@pytest.mark.parametrize('file', ['fsdd/recordings.zip', 'mnist/mnist.npz'])
def test_an_archive_that_python_cannot_unpack_is_a_user_error(
  source, tmp_path, file, field
):
  shutil.copytree(source, tmp_path / 'source')
  make_unreadable(tmp_path / 'source' / file, field)
  with pytest.raises(UserError, match=f'{file}.* cannot be used'):
    build(tmp_path / 'source', tmp_path / 'out', **SETTINGS)
  assert not (tmp_path / 'out').exists()


def test_the_command_prints_one_line_and_fails(output, tmp_path):
  command = [sys.executable, '-m', 'omni_jax.data.sources.spoken_digits']
  for flags, message in (
    ([f'--source={tmp_path}', f'--output={tmp_path}/out'], 'recordings.zip'),
    ([f'--source={tmp_path}', f'--output={output.folder}'], 'already exists'),
  ):
    result = subprocess.run(
      command + flags, capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stderr.startswith('error: ')
    assert result.stderr.count('\n') == 1
