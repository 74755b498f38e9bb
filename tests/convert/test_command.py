"""A conversion writes the records of every kind of input, and can be resumed.

The bytes of the output do not depend on how the conversion runs, and an output never
appears half finished.
"""

import collections
import errno
import functools
import gzip
import io
import json
import multiprocessing
import os
import pathlib
import signal
import tarfile
import time

import numpy as np
import pytest

from omni_jax.convert import __main__ as command
from omni_jax.convert import inputs, local
from omni_jax.convert.conversion import index_of, shard_of, write_spill
from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.formats.folder import FolderReader
from omni_jax.convert.formats.parquet import ParquetReader
from omni_jax.convert.formats.reader import InputExample
from omni_jax.convert.formats.tar import TarReader
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.errors import BadRecord, UserError
from omni_jax.modalities.audio.files import wav_bytes
from omni_jax.modalities.audio.sizes import AudioConfig
from omni_jax.modalities.hosts import Hosts
from omni_jax.modalities.image.files import png_bytes
from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig

SIZES = {
  'image': ImageConfig(height=4, width=4, channels=1),
  'audio': AudioConfig(seconds=8.0),
}
HOSTS = Hosts(SIZES, Tokenizer(TokenizerConfig()))
SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'data'


def image(seed=0):
  """Returns a random image as a PNG file."""
  rng = np.random.default_rng(seed)
  return png_bytes(rng.random((4, 4, 1)))


def sound(seed=0, samples=500):
  """Returns a random sound as a WAV file."""
  rng = np.random.default_rng(seed)
  return wav_bytes(rng.uniform(-1, 1, samples), 8000)


@pytest.fixture
def lines(tmp_path):
  """Returns a file of 13 lines.

  One example has no id, one has the id of another, and two are damaged.
  """
  folder = tmp_path / 'in'
  folder.mkdir()
  examples = []
  for n in range(9):
    (folder / f'{n}.png').write_bytes(image(n))
    (folder / f'{n}.wav').write_bytes(sound(n))
    image_part = {'type': 'image', 'path': f'{n}.png', 'label': 'x'}
    sound_part = {'type': 'audio', 'path': f'{n}.wav', 'voice': 'ann'}
    messages = [
      {'role': 'user', 'content': [image_part]},
      {'role': 'assistant', 'task': 'speak', 'content': [sound_part]},
    ]
    examples.append({'id': f'chat {n}', 'messages': messages})
  examples.append({'content': [{'type': 'text', 'text': 'plain'}]})
  examples.append({'id': 'chat 3', 'content': 'again'})
  (folder / 'cut.png').write_bytes(image()[:40])
  examples.append({'id': 'cut', 'content': [{'type': 'image', 'path': 'cut.png'}]})
  rows = [json.dumps(example) for example in examples]
  rows.append('{"id": "broken", "content": ')
  path = folder / 'data.jsonl'
  path.write_text('\n'.join(rows))
  return path


def convert(reader, output, **options):
  """Converts what a reader reads into three shards, and returns the manifest."""
  defaults = dict(
    shards=3, workers=1, input_name='it', timeout=60, log=lambda line: None
  )
  return command.convert(reader, output, **(defaults | options))


def examples_in(folder) -> dict:
  """Returns the converted examples of a folder, by id."""
  records = ArrayRecordExamples(sorted(folder.glob('*.array_record')), HOSTS)
  return {example['id']: example for example in records}


def refused_in(folder) -> dict[str, str]:
  """Returns the reasons for refusing examples, by id."""
  reasons = {}
  for line in (folder / 'refused.jsonl').read_text().splitlines():
    refused = json.loads(line)
    reasons[refused['id']] = refused['reason']
  return reasons


def files_in(folder) -> dict[str, bytes]:
  """Returns the contents of the files in a folder, by name."""
  return {path.name: path.read_bytes() for path in folder.iterdir()}


class Killed(Exception):
  """Takes the place of a kill of the process."""


class SmallPieces(JsonLinesReader):
  """Reads a small file in many pieces."""

  chunk = 2


def test_records_are_the_lines_and_bad_ones_are_listed(lines, tmp_path):
  manifest = convert(JsonLinesReader(str(lines)), tmp_path / 'out')
  examples = examples_in(tmp_path / 'out')
  good = tmp_path / 'in' / 'good.jsonl'
  good.write_text('\n'.join(lines.read_text().splitlines()[:10]))
  expected = {}
  for example in JsonLines(good, HOSTS):
    expected[example['id'].replace('good', 'data')] = example
  ids = {f'chat {n}' for n in range(9)} | {'data.jsonl:10'}
  assert examples.keys() == expected.keys() == ids
  user, assistant = examples['chat 3']['messages']
  expected_user = expected['chat 3']['messages'][0]
  np.testing.assert_array_equal(
    user['content'][0]['pixels'], expected_user['content'][0]['pixels']
  )
  assert assistant['content'][0]['voice'] == 'ann'
  assert manifest['records'] == 10
  media = {'images': 9, 'sounds': 9, 'seconds': 9 * 500 / 8000}
  assert manifest['media'] == media
  refused = refused_in(tmp_path / 'out')
  assert refused.keys() == {'chat 3', 'cut', 'data.jsonl:13'}
  assert sum(manifest['refused'].values()) == 3
  assert refused['chat 3'] == 'its id occurs earlier'
  assert 'cut.png' not in refused['chat 3']
  assert 'damaged' in refused['cut']
  assert 'not JSON' in refused['data.jsonl:13']


@pytest.mark.parametrize('workers', [1, 2])
def test_the_number_of_workers_and_pieces_changes_nothing(lines, tmp_path, workers):
  convert(JsonLinesReader(str(lines)), tmp_path / 'one')
  convert(SmallPieces(str(lines)), tmp_path / 'other', workers=workers)
  assert files_in(tmp_path / 'one') == files_in(tmp_path / 'other')


def test_a_shard_holds_the_ids_of_its_hash_in_order(lines, tmp_path):
  manifest = convert(JsonLinesReader(str(lines)), tmp_path / 'out')
  for shard in manifest['shards']:
    records = ArrayRecordExamples(tmp_path / 'out' / shard['file'], HOSTS)
    ids = [example['id'] for example in records]
    number = int(shard['file'].split('-')[1])
    assert ids == sorted(ids)
    assert {shard_of(id, 3) for id in ids} == {number}


def test_an_interrupted_conversion_is_resumed(lines, tmp_path):
  class DyingReader(SmallPieces):
    def read(self, items):
      if items.start == 3 * self.chunk:
        raise Killed
      return super().read(items)

  convert(SmallPieces(str(lines)), tmp_path / 'whole')
  with pytest.raises(Killed):
    convert(DyingReader(str(lines)), tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  log = []
  convert(SmallPieces(str(lines)), tmp_path / 'out', log=log.append)
  assert log[0] == 'convert: resuming, 3 of 7 pieces are already converted'
  assert files_in(tmp_path / 'whole') == files_in(tmp_path / 'out')
  assert not (tmp_path / 'out.partial').exists()


def _convert_slowly(path, out):
  """Converts a file at 0.3 s per piece, so that a test can kill the process."""

  class SlowReader(SmallPieces):
    def read(self, items):
      time.sleep(0.3)
      return super().read(items)

  convert(SlowReader(path), out)


def test_a_conversion_whose_process_was_killed_is_resumed(lines, tmp_path):
  convert(SmallPieces(str(lines)), tmp_path / 'whole')
  process = multiprocessing.get_context('spawn').Process(
    target=_convert_slowly, args=(str(lines), tmp_path / 'out')
  )
  process.start()
  spill_index = index_of(tmp_path / 'out.partial' / 'spills' / '000001.spill')
  while not spill_index.exists():
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  convert(SmallPieces(str(lines)), tmp_path / 'out')
  assert files_in(tmp_path / 'whole') == files_in(tmp_path / 'out')


def test_a_changed_input_is_not_mixed_with_the_old_one(lines, tmp_path):
  class DyingReader(SmallPieces):
    def read(self, items):
      raise Killed

  with pytest.raises(Killed):
    convert(DyingReader(str(lines)), tmp_path / 'out')
  with pytest.raises(
    UserError, match='out.partial was begun with different shards: remove it'
  ):
    convert(SmallPieces(str(lines)), tmp_path / 'out', shards=4)
  lines.write_text(lines.read_text() + '\n{"content": "more"}')
  with pytest.raises(UserError, match='was begun with different items and files'):
    convert(SmallPieces(str(lines)), tmp_path / 'out')


class HangingReader(SmallPieces):
  """Hangs at every piece."""

  def read(self, items):
    time.sleep(60)
    return iter(())


class ExitingReader(SmallPieces):
  """Ends the process of the worker."""

  def read(self, items):
    os._exit(1)


@pytest.mark.parametrize(
  'reader, message',
  [
    (HangingReader, 'no worker has finished a piece for 6 s'),
    (ExitingReader, 'a worker has died'),
  ],
)
def test_workers_that_hang_or_die_are_an_error(lines, tmp_path, reader, message):
  start = time.monotonic()
  with pytest.raises(UserError, match=message):
    convert(reader(str(lines)), tmp_path / 'out', workers=2, timeout=6)
  assert time.monotonic() - start < 40
  assert not (tmp_path / 'out').exists()


def test_an_input_without_usable_examples_and_an_existing_output_are_refused(tmp_path):
  folder = tmp_path / 'in'
  folder.mkdir()
  (folder / 'a.png').write_bytes(b'')
  with pytest.raises(UserError, match='can be used: 1 x file is empty'):
    convert(FolderReader(str(folder)), tmp_path / 'out')
  assert not list(tmp_path.glob('out*'))
  with pytest.raises(UserError, match='already exists'):
    convert(FolderReader(str(folder)), folder)


def test_a_full_disk_is_reported_in_one_line(lines, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(local, 'write_spill', full)
  with pytest.raises(UserError, match='out.partial cannot be written .*No space left'):
    convert(SmallPieces(str(lines)), tmp_path / 'out')


def test_pictures_of_a_folder_have_their_label_or_caption_as_answer(tmp_path):
  root = tmp_path / 'in'
  (root / 'cat').mkdir(parents=True)
  for name in ('cat/1.png', 'cat/2.PNG', 'lone.png', 'captioned.png'):
    (root / name).write_bytes(image())
  (root / 'captioned.txt').write_text('a grey square\n')
  (root / 'notes.md').write_text('not a medium')
  (root / 'link.png').symlink_to('/etc/passwd')
  convert(FolderReader(str(root), language='en'), tmp_path / 'out')
  examples = examples_in(tmp_path / 'out')
  assert examples.keys() == {'cat/1.png', 'cat/2.PNG', 'lone.png', 'captioned.png'}
  user, assistant = examples['cat/2.PNG']['messages']
  assert user['content'][0]['label'] == 'cat'
  assert assistant['content'] == [{'type': 'text', 'text': 'cat'}]
  assert assistant['task'] == 'write'
  assert assistant['language'] == 'en'
  caption = examples['captioned.png']['messages'][1]['content'][0]
  assert caption['text'] == 'a grey square'
  assert examples['lone.png']['content'][0]['type'] == 'image'


def tar_of(path, members: dict[str, bytes], mode='w') -> str:
  """Writes a tar file of these members and returns its path as text."""
  with tarfile.open(path, mode) as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return str(path)


def test_files_of_a_tar_file_with_the_same_stem_are_one_example(tmp_path):
  chat = {
    'messages': [
      {'role': 'user', 'content': 'draw'},
      {'role': 'assistant', 'content': [{'type': 'image', 'path': '3.png'}]},
    ]
  }
  members = {
    'a/1.png': image(1),
    'a/1.txt': b'one',
    'a/2.wav': sound(2),
    'a/3.json': json.dumps(chat).encode(),
    'a/3.png': image(3),
    '4.txt': b'words',
    '5.xml': b'?',
    '6.json': b'{"content": [{"type": "image", "path": "no.png"}]}',
  }
  path = tar_of(tmp_path / 'set.tar.gz', members, 'w:gz')
  convert(TarReader([path]), tmp_path / 'out')
  examples = examples_in(tmp_path / 'out')
  assert examples.keys() == {'set/a/1', 'set/a/2', 'set/a/3', 'set/4'}
  assert examples['set/a/1']['messages'][1]['content'][0]['text'] == 'one'
  assert examples['set/a/2']['content'][0]['type'] == 'audio'
  assert examples['set/4']['content'][0]['text'] == 'words'
  assert examples['set/a/3']['messages'][1]['content'][0]['type'] == 'image'
  reason = 'no.png: not in the sample, which has 6.json'
  assert refused_in(tmp_path / 'out') == {'set/6': reason}


def test_a_tar_file_reads_nothing_outside_of_it(tmp_path):
  path = tmp_path / 'evil.tar'
  with tarfile.open(path, 'w') as archive:
    for name, kind in (
      ('../up.png', tarfile.REGTYPE),
      ('/root.png', tarfile.REGTYPE),
      ('link.png', tarfile.SYMTYPE),
      ('hard.png', tarfile.LNKTYPE),
      ('pipe.png', tarfile.FIFOTYPE),
      ('ok.png', tarfile.REGTYPE),
    ):
      info = tarfile.TarInfo(name)
      info.type = kind
      info.linkname = '/etc/passwd'
      data = image() if kind == tarfile.REGTYPE else b''
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  convert(TarReader([str(path)]), tmp_path / 'out')
  assert examples_in(tmp_path / 'out').keys() == {'evil/ok'}
  reasons = refused_in(tmp_path / 'out').values()
  assert len(reasons) == 5
  assert sum('leaves the archive' in reason for reason in reasons) == 2


def test_members_of_a_bomb_and_of_a_cut_archive_are_refused(tmp_path):
  bomb = tmp_path / 'bomb.tar.gz'
  with gzip.open(bomb, 'wb') as file:
    info = tarfile.TarInfo('a.png')
    info.size = 200 << 20
    file.write(info.tobuf() + bytes(1 << 20))  # declares 200 MiB and has only one
  cut = tmp_path / 'cut.tar'
  tar_of(cut, {'1.png': image(1), '2.png': image(2) * 50})
  cut.write_bytes(cut.read_bytes()[:3000])
  manifest = convert(TarReader([str(bomb), str(cut)]), tmp_path / 'out')
  assert manifest['records'] == 1
  assert any('has 209,715,200 bytes' in reason for reason in manifest['refused'])
  assert any('cannot be read further' in reason for reason in manifest['refused'])


def test_parquet_files_as_the_hub_writes_them_are_converted(tmp_path):
  pyarrow = pytest.importorskip('pyarrow')
  parquet = pytest.importorskip('pyarrow.parquet')
  features = {
    'image': {'_type': 'Image'},
    'label': {'_type': 'ClassLabel', 'names': ['cat', 'dog']},
  }
  metadata = {'info': {'features': features}}
  images = [{'bytes': image(n), 'path': None} for n in range(3)]
  images.append({'bytes': None, 'path': 'x'})
  table = pyarrow.table({'image': images, 'label': [0, 1, 1, 0]})
  table = table.replace_schema_metadata({'huggingface': json.dumps(metadata)})
  path = tmp_path / 'part-0.parquet'
  parquet.write_table(table, path, row_group_size=2)
  convert(ParquetReader([str(path)]), tmp_path / 'out')
  examples = examples_in(tmp_path / 'out')
  for name, label in (('0/0', 'cat'), ('0/1', 'dog'), ('1/0', 'dog')):
    answer = examples[f'part-0/{name}']['messages'][1]
    assert answer['content'][0]['text'] == label
  assert 'holds no bytes' in (tmp_path / 'out' / 'refused.jsonl').read_text()
  with pytest.raises(
    UserError,
    match=r"has image \(image\), label \(text\): name the prompt .*\(now 'image' and 'x'\)",
  ):
    ParquetReader([str(path)], write='x')
  reversed_reader = ParquetReader([str(path)], read='label', write='image')
  convert(reversed_reader, tmp_path / 'reversed')
  examples = examples_in(tmp_path / 'reversed')
  assert examples['part-0/0/0']['messages'][1]['task'] == 'draw'


@pytest.mark.parametrize(
  'name, kind',
  [('x.jsonl', 'jsonl'), ('x.tar.gz', 'tar'), ('x.parquet', 'parquet'), ('x.bin', '')],
)
def test_the_name_of_a_file_tells_its_kind(tmp_path, name, kind):
  (tmp_path / name).write_bytes(b'')
  assert inputs._kind_of(str(tmp_path / name)) == kind


@pytest.mark.parametrize(
  'arguments, message',
  [
    (['--input=nowhere.jsonl'], 'no such file'),
    (['--input=.', '--shards=0'], '--shards=0'),
    (['--input=tfds:a*/train'], r'--input=tfds:a\*/train: '),
    (['--input=seqio:a/train'], "needs the package 'seqio'|has no task"),
    ([], ''),
  ],
)
def test_mistakes_at_the_command_line_are_refused(tmp_path, arguments, message):
  if not arguments:
    with pytest.raises(SystemExit):
      command.main([])
    return
  with pytest.raises(UserError, match=message):
    command.main([*arguments, f'--output={tmp_path / "out"}'])
  assert not list(tmp_path.iterdir())


def test_the_command_prints_a_summary(lines, tmp_path, capsys):
  command.main(
    [f'--input={lines}', f'--output={tmp_path / "out"}', '--workers=1', '--shards=2']
  )
  summary = capsys.readouterr().out.splitlines()[-1]
  assert summary == (
    f'convert: wrote {tmp_path}/out: 10 records in 2 shards, '
    '9 images, 9 sounds, 0.5625 seconds; '
    f'3 refused, see {tmp_path}/out/refused.jsonl'
  )


def test_a_flipped_bit_is_found_in_training(lines, tmp_path):
  """The medium of the record can still be decoded, but it has changed."""
  reader = JsonLinesReader(str(lines))
  write_spill(reader, range(0, 1), tmp_path / '0.spill', 1)
  from omni_jax.data.sources.records import decode_example

  record = bytearray((tmp_path / '0.spill').read_bytes())
  wave = record.rindex(b'data') + 100
  record[wave] ^= 1
  with pytest.raises(BadRecord, match='has changed since the conversion'):
    decode_example(bytes(record), HOSTS)


@pytest.mark.skipif(not SHARED.is_dir(), reason='there are no shared data')
def test_malformed_files_are_refused_or_read_correctly(tmp_path):
  manifest = convert(FolderReader(str(SHARED / 'malformed')), tmp_path / 'out')
  readable = {'silence.wav', 'loud_float.wav', 'really_a_jpg.png', 'really_a_wav.flac'}
  assert examples_in(tmp_path / 'out').keys() == readable
  entries = json.loads((SHARED / 'malformed' / 'malformed.json').read_text())
  names = [entry['file'] for entry in entries]
  media = [name for name in names if not name.endswith('.txt')]
  refused = collections.Counter(manifest['refused'])
  assert sum(refused.values()) == len(media) - len(readable) == 30
  assert refused["content[0]: type 'video' is not one of text, image, audio"] == 6
  assert refused['file is empty'] == 2


def plain_text(text: str) -> dict:
  """Returns an example in plain form."""
  return {'content': [{'type': 'text', 'text': text}]}


def test_the_first_of_two_records_with_the_same_id_is_kept(tmp_path):
  """The order in the input decides, not the speed of the workers."""

  class RepeatingReader:
    chunk = 1
    files = ()

    def __len__(self):
      return 2

    def read(self, items):
      for k in items:
        yield InputExample('same', functools.partial(plain_text, str(k)))

  manifest = convert(RepeatingReader(), tmp_path / 'out')
  assert manifest['records'] == 1
  example = examples_in(tmp_path / 'out')['same']
  assert example['content'][0]['text'] == '0'
