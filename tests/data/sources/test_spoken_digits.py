"""FSDD + MNIST -> JSON lines, on small stand-ins: splits kept apart, digits agree, nothing half-written."""

import csv
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from samples import hosts_of

from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.spoken_digits import build, KINDS, WORDS
from omni_jax.errors import UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.image.sizes import ImageConfig

HOSTS = hosts_of(image=ImageConfig(height=28, width=28), audio=AudioConfig(seconds=3.2))
SETTINGS = dict(images=600, strings=50, seconds=1.0, string_seconds=3.2, seed=0)
SPEAKERS = ('george', 'theo')


@pytest.fixture(scope='module')
def source(tmp_path_factory):
  """Both data sets in small: pixels and samples tell the digit; one clip is too long, one unreadable."""
  folder = tmp_path_factory.mktemp('source')
  (folder / 'fsdd').mkdir()
  (folder / 'mnist').mkdir()
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
      samples = 9000 if (digit, speaker, take) == (3, 1, 8) else 100
      data = wav_bytes(np.full(samples, digit / 16, np.float32), 8000)
      archive.writestr(
        f'recordings/{name}', data[:60] if (digit, speaker, take) == (4, 0, 8) else data
      )
      rows.writerow(
        (
          name,
          digit,
          SPEAKERS[speaker],
          take,
          'test' if take < 5 else 'train',
          8000,
          samples,
          '',
        )
      )
  arrays = {}
  for part, count in (('train', 700), ('test', 100)):
    labels = np.arange(count) % 10
    arrays |= {
      f'{part}_labels': labels.astype(np.uint8),
      f'{part}_images': np.broadcast_to(
        labels[:, None, None] * 10, (count, 28, 28)
      ).astype(np.uint8),
    }
  np.savez(folder / 'mnist' / 'mnist.npz', **arrays)
  return folder


@pytest.fixture(scope='module')
def built(source, tmp_path_factory):
  output = tmp_path_factory.mktemp('output') / 'digits'
  return output, build(source, output, **SETTINGS)


def parts(example) -> list[dict]:
  return [part for message in example['messages'] for part in message['content']]


def digits_of(part) -> list[int]:
  """The digits that a text or the label of a medium names, checked against what the medium shows."""
  if part['type'] == 'text' and part['text'].isdigit():
    return [int(part['text'])]
  named = [
    WORDS.index(word)
    for word in (part['text'] if part['type'] == 'text' else part['label']).split()
  ]
  if part['type'] == 'image':
    assert round(part['pixels'].max() * 25.5) == named[0]
  if part['type'] == 'audio':  # every recording of the stand-ins has 100 samples
    assert (
      np.round(part['wave'].reshape(-1, 100).mean(axis=1) * 16).astype(int).tolist()
      == named
    )
  return named


@pytest.mark.parametrize('split', ['train', 'valid', 'test'])
def test_every_row_can_be_read_and_agrees_in_its_digit(built, split):
  for example in JsonLines(built[0] / f'{split}.jsonl', HOSTS):
    assert len({tuple(digits_of(part)) for part in parts(example)}) == 1
    assert example['meta'] == {'group': example['id'].split('/')[1]}


def test_strings_join_two_to_five_recordings_of_one_speaker(built):
  strings = [
    parts(example)[0]
    for example in JsonLines(built[0] / 'train.jsonl', HOSTS)
    if example['meta']['group'] == 'string_to_text'
  ]
  assert {len(digits_of(part)) for part in strings} == {2, 3, 4, 5}
  assert {part['voice'] for part in strings} == set(SPEAKERS)
  assert {'train', 'valid', 'test'} == {
    path.name.split('_')[0] for path in (built[0] / 'strings').iterdir()
  }


def test_a_speaker_file_holds_all_recordings_of_one_speaker(built):
  heard = [
    parts(example)[0] for example in JsonLines(built[0] / 'speaker_theo.jsonl', HOSTS)
  ]
  assert {part['voice'] for part in heard} == {'theo'}
  assert (
    len({part['path'] for part in built_lines(built, 'speaker_theo')})
    == len(heard)
    == 99
  )  # one is too long
  everybody = [
    part['path']
    for name in ('george', 'theo')
    for part in built_lines(built, f'speaker_{name}')
  ]
  assert [part['path'] for part in built_lines(built, 'speakers')] == everybody


def built_lines(built, name):
  lines = JsonLines(built[0] / f'{name}.jsonl', HOSTS)
  return [parts(lines.encoded(n))[0] for n in range(len(lines))]


def test_every_direction_is_there_with_its_controls(built):
  lines = JsonLines(built[0] / 'train.jsonl', HOSTS)
  counts = dict.fromkeys(KINDS, 0)
  for n in range(len(lines)):
    example = lines.encoded(n)
    kind = KINDS[example['id'].split('/')[1]]
    counts[example['id'].split('/')[1]] += 1
    question, answer = example['messages']
    assert (answer['language'], answer['task']) == ('en', kind.task)
    assert [part['type'] for part in answer['content']] == list(kind.reply)
    assert question['content'][0]['type'] == {'numeral': 'text', 'string': 'audio'}.get(
      kind.given, kind.given
    )
    spoken = [
      part['path'].split('_')[1]
      for part in answer['content']
      if part['type'] == 'audio'
    ]
    assert ([answer['voice']] if 'voice' in answer else []) == spoken
    assert (
      question['content'][0] not in answer['content']
    )  # another handwriting, another recording
  assert counts == {name: round(600 * kind.share) for name, kind in KINDS.items()}


def test_splits_share_no_medium_and_takes_follow_the_official_split(built):
  paths = {}
  for split in ('train', 'valid', 'test'):
    lines = JsonLines(built[0] / f'{split}.jsonl', HOSTS)
    paths[split] = {
      part['path']
      for n in range(len(lines))
      for part in parts(lines.encoded(n))
      if 'path' in part
    }
    takes = {
      int(path.split('_')[2][:-4])
      for path in paths[split]
      if path.startswith('speech/')
    }
    assert (
      takes <= {'train': {8, 9}, 'valid': {5, 6, 7}, 'test': {0, 1, 2, 3, 4}}[split]
    )
  assert not (
    paths['train'] & paths['valid']
    | paths['valid'] & paths['test']
    | paths['train'] & paths['test']
  )


def test_held_out_sources_are_read_once(built):
  lines = JsonLines(built[0] / 'test.jsonl', HOSTS)
  heard = [
    parts(lines.encoded(n))[0]['path']
    for n in range(len(lines))
    if '/speech_to_text/' in lines.encoded(n)['id']
  ]
  assert len(heard) == len(set(heard)) == 30


def test_what_was_left_out_is_counted(built):
  assert (
    'left out 1 clips longer than 1.0 s' in built[1]
    and 'left out 1 clips unreadable' in built[1]
  )
  assert 'seconds of at least 3.2' in built[1]
  assert not (built[0] / 'speech' / '3_theo_8.wav').exists()


def test_the_seed_decides(source, built, tmp_path):
  build(source, tmp_path / 'same', **SETTINGS)
  build(source, tmp_path / 'other', **SETTINGS | dict(seed=1))
  first, same, other = (
    (folder / 'train.jsonl').read_bytes()
    for folder in (built[0], tmp_path / 'same', tmp_path / 'other')
  )
  assert first == same != other


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
    with pytest.raises(UserError, match=r'mnist\.npz: cannot be used'):
      build(tmp_path, tmp_path / 'out', **SETTINGS | dict(images=10))
  assert not (tmp_path / 'out').exists()


def test_the_command_says_one_line_and_fails(built, tmp_path):
  command = [sys.executable, '-m', 'omni_jax.data.sources.spoken_digits']
  for flags, message in (
    ([f'--source={tmp_path}', f'--output={tmp_path}/out'], 'recordings.zip'),
    ([f'--source={tmp_path}', f'--output={built[0]}'], 'exists already'),
  ):
    done = subprocess.run(command + flags, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and message in done.stderr
    assert done.stderr.startswith('error: ') and done.stderr.count('\n') == 1
