"""Conversion: every input comes out as the same records, in the same bytes however it is run, and nothing half-made."""

import collections
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
from omni_jax.convert.formats.reader import Found
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
  return png_bytes(np.random.default_rng(seed).random((4, 4, 1)))


def sound(seed=0, samples=500):
  return wav_bytes(np.random.default_rng(seed).uniform(-1, 1, samples), 8000)


@pytest.fixture
def lines(tmp_path):
  """Twelve examples, one of them without an id, two damaged, one whose id occurs before."""
  (tmp_path / 'in').mkdir()
  examples = []
  for n in range(9):
    (tmp_path / 'in' / f'{n}.png').write_bytes(image(n))
    (tmp_path / 'in' / f'{n}.wav').write_bytes(sound(n))
    examples.append(
      {
        'id': f'chat {n}',
        'messages': [
          {
            'role': 'user',
            'content': [{'type': 'image', 'path': f'{n}.png', 'label': 'x'}],
          },
          {
            'role': 'assistant',
            'task': 'speak',
            'content': [{'type': 'audio', 'path': f'{n}.wav', 'voice': 'ann'}],
          },
        ],
      }
    )
  examples.append({'content': [{'type': 'text', 'text': 'plain'}]})
  examples.append({'id': 'chat 3', 'content': 'again'})
  (tmp_path / 'in' / 'cut.png').write_bytes(image()[:40])
  examples.append({'id': 'cut', 'content': [{'type': 'image', 'path': 'cut.png'}]})
  path = tmp_path / 'in' / 'data.jsonl'
  path.write_text(
    '\n'.join([*map(json.dumps, examples), '{"id": "broken", "content": '])
  )
  return path


def converted(reader, output, **options):
  return command.convert(
    reader,
    output,
    **dict(shards=3, workers=1, said='it', timeout=60, log=lambda line: None) | options,
  )


def examples_in(folder) -> dict:
  found = ArrayRecordExamples(sorted(folder.glob('*.array_record')), HOSTS)
  return {example['id']: example for example in found}


def refused_in(folder) -> dict[str, str]:
  return {
    line['id']: line['reason']
    for line in map(json.loads, (folder / 'refused.jsonl').read_text().splitlines())
  }


def files_in(folder) -> dict[str, bytes]:
  return {path.name: path.read_bytes() for path in folder.iterdir()}


class Killed(Exception):
  """The process ends here."""


class Small(JsonLinesReader):
  """Many pieces of a small file."""

  chunk = 2


def test_records_are_the_lines_and_what_is_bad_is_listed(lines, tmp_path):
  manifest = converted(JsonLinesReader(str(lines)), tmp_path / 'out')
  found = examples_in(tmp_path / 'out')
  good = tmp_path / 'in' / 'good.jsonl'
  good.write_text('\n'.join(lines.read_text().splitlines()[:10]))
  expected = {
    example['id'].replace('good', 'data'): example for example in JsonLines(good, HOSTS)
  }
  assert (
    found.keys()
    == expected.keys()
    == {*(f'chat {n}' for n in range(9)), 'data.jsonl:10'}
  )
  np.testing.assert_array_equal(
    found['chat 3']['messages'][0]['content'][0]['pixels'],
    expected['chat 3']['messages'][0]['content'][0]['pixels'],
  )
  assert found['chat 3']['messages'][1]['content'][0]['voice'] == 'ann'
  assert manifest['records'] == 10 and manifest['media'] == {
    'images': 9,
    'sounds': 9,
    'seconds': 9 * 500 / 8000,
  }
  refused = refused_in(tmp_path / 'out')
  assert (
    refused.keys() == {'chat 3', 'cut', 'data.jsonl:13'}
    and sum(manifest['refused'].values()) == 3
  )
  assert (
    refused['chat 3'] == 'its id occurs before' and 'cut.png' not in refused['chat 3']
  )
  assert 'damaged' in refused['cut'] and 'not JSON' in refused['data.jsonl:13']


@pytest.mark.parametrize('workers', [1, 2])
def test_the_number_of_workers_and_pieces_changes_nothing(lines, tmp_path, workers):
  converted(JsonLinesReader(str(lines)), tmp_path / 'one')
  converted(Small(str(lines)), tmp_path / 'other', workers=workers)
  assert files_in(tmp_path / 'one') == files_in(tmp_path / 'other')


def test_a_shard_holds_what_its_hash_says_in_order(lines, tmp_path):
  manifest = converted(JsonLinesReader(str(lines)), tmp_path / 'out')
  for shard in manifest['shards']:
    ids = [
      example['id']
      for example in ArrayRecordExamples(tmp_path / 'out' / shard['file'], HOSTS)
    ]
    assert ids == sorted(ids) and {shard_of(id, 3) for id in ids} == {
      int(shard['file'].split('-')[1])
    }


def test_an_interrupted_conversion_goes_on(lines, tmp_path):
  class Dies(Small):
    def read(self, items):
      if items.start == 6:
        raise Killed
      return super().read(items)

  converted(Small(str(lines)), tmp_path / 'whole')
  with pytest.raises(Killed):
    converted(Dies(str(lines)), tmp_path / 'out')
  assert not (tmp_path / 'out').exists()
  said = []
  converted(Small(str(lines)), tmp_path / 'out', log=said.append)
  assert said[0] == 'convert: goes on, 3 of 7 pieces are there'
  assert files_in(tmp_path / 'whole') == files_in(tmp_path / 'out')
  assert not (tmp_path / 'out.partial').exists()


def _convert_slowly(path, out):
  class Slow(Small):
    def read(self, items):
      time.sleep(0.3)
      return super().read(items)

  converted(Slow(path), out)


def test_a_killed_conversion_goes_on(lines, tmp_path):
  converted(Small(str(lines)), tmp_path / 'whole')
  process = multiprocessing.get_context('spawn').Process(
    target=_convert_slowly, args=(str(lines), tmp_path / 'out')
  )
  process.start()
  first = index_of(tmp_path / 'out.partial' / 'spills' / '000001.spill')
  while not first.exists():
    time.sleep(0.01)
  os.kill(process.pid, signal.SIGKILL)
  process.join()
  converted(Small(str(lines)), tmp_path / 'out')
  assert files_in(tmp_path / 'whole') == files_in(tmp_path / 'out')


def test_a_changed_input_is_not_mixed_with_the_old_one(lines, tmp_path):
  class Dies(Small):
    def read(self, items):
      raise Killed

  with pytest.raises(Killed):
    converted(Dies(str(lines)), tmp_path / 'out')
  with pytest.raises(
    UserError, match='out.partial was begun with another shards: remove it'
  ):
    converted(Small(str(lines)), tmp_path / 'out', shards=4)
  lines.write_text(lines.read_text() + '\n{"content": "more"}')
  with pytest.raises(UserError, match='was begun with another items and files'):
    converted(Small(str(lines)), tmp_path / 'out')


class Hangs(Small):
  def read(self, items):
    time.sleep(60)
    return iter(())


class Ends(Small):
  def read(self, items):
    os._exit(1)


@pytest.mark.parametrize(
  'reader, said',
  [(Hangs, 'no worker has finished anything for 6 s'), (Ends, 'a worker has died')],
)
def test_workers_that_hang_or_die_are_an_error(lines, tmp_path, reader, said):
  began = time.monotonic()
  with pytest.raises(UserError, match=said):
    converted(reader(str(lines)), tmp_path / 'out', workers=2, timeout=6)
  assert time.monotonic() - began < 40 and not (tmp_path / 'out').exists()


def test_nothing_usable_and_an_output_that_exists(tmp_path):
  (tmp_path / 'in').mkdir()
  (tmp_path / 'in' / 'a.png').write_bytes(b'')
  with pytest.raises(UserError, match='no example can be used: 1 x file is empty'):
    converted(FolderReader(str(tmp_path / 'in')), tmp_path / 'out')
  assert not list(tmp_path.glob('out*'))
  with pytest.raises(UserError, match='exists already'):
    converted(FolderReader(str(tmp_path / 'in')), tmp_path / 'in')


def test_a_full_disk_is_said_in_one_line(lines, tmp_path, monkeypatch):
  def full(*_):
    raise OSError(28, 'No space left on device')

  monkeypatch.setattr(local, 'write_spill', full)
  with pytest.raises(UserError, match='out.partial: cannot be written .*No space left'):
    converted(Small(str(lines)), tmp_path / 'out')


def test_a_folder_of_pictures(tmp_path):
  root = tmp_path / 'in'
  (root / 'cat').mkdir(parents=True)
  for name in ('cat/1.png', 'cat/2.PNG', 'lone.png', 'told.png'):
    (root / name).write_bytes(image())
  (root / 'told.txt').write_text('a grey square\n')
  (root / 'notes.md').write_text('not a medium')
  (root / 'link.png').symlink_to('/etc/passwd')
  converted(FolderReader(str(root), language='en'), tmp_path / 'out')
  found = examples_in(tmp_path / 'out')
  assert found.keys() == {'cat/1.png', 'cat/2.PNG', 'lone.png', 'told.png'}
  user, assistant = found['cat/2.PNG']['messages']
  assert user['content'][0]['label'] == 'cat' and assistant['content'] == [
    {'type': 'text', 'text': 'cat'}
  ]
  assert (assistant['task'], assistant['language']) == ('write', 'en')
  assert found['told.png']['messages'][1]['content'][0]['text'] == 'a grey square'
  assert found['lone.png']['content'][0]['type'] == 'image'


def tar_of(path, members: dict[str, bytes], mode='w') -> str:
  with tarfile.open(path, mode) as archive:
    for name, data in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  return str(path)


def test_tar_files_of_samples(tmp_path):
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
  converted(TarReader([path]), tmp_path / 'out')
  found = examples_in(tmp_path / 'out')
  assert found.keys() == {'set/a/1', 'set/a/2', 'set/a/3', 'set/4'}
  assert found['set/a/1']['messages'][1]['content'][0]['text'] == 'one'
  assert (
    found['set/a/2']['content'][0]['type'] == 'audio'
    and found['set/4']['content'][0]['text'] == 'words'
  )
  assert found['set/a/3']['messages'][1]['content'][0]['type'] == 'image'
  assert refused_in(tmp_path / 'out') == {
    'set/6': 'no.png: not in the sample, which has 6.json'
  }


def test_a_tar_file_cannot_leave_its_place(tmp_path):
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
      info.type, info.linkname = kind, '/etc/passwd'
      data = image() if kind == tarfile.REGTYPE else b''
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  converted(TarReader([str(path)]), tmp_path / 'out')
  assert examples_in(tmp_path / 'out').keys() == {'evil/ok'}
  reasons = refused_in(tmp_path / 'out').values()
  assert (
    len(reasons) == 5 and sum('leaves the archive' in reason for reason in reasons) == 2
  )


def test_a_bomb_and_a_cut_archive(tmp_path):
  bomb = tmp_path / 'bomb.tar.gz'
  with gzip.open(bomb, 'wb') as file:
    info = tarfile.TarInfo('a.png')
    info.size = 200 << 20
    file.write(info.tobuf() + bytes(1 << 20))  # says 200 MiB, and ends after one
  whole = pathlib.Path(
    tar_of(tmp_path / 'cut.tar', {'1.png': image(1), '2.png': image(2) * 50})
  )
  whole.write_bytes(whole.read_bytes()[:3000])
  manifest = converted(TarReader([str(bomb), str(whole)]), tmp_path / 'out')
  assert manifest['records'] == 1
  assert any('has 209,715,200 bytes' in reason for reason in manifest['refused'])
  assert any('cannot be read further' in reason for reason in manifest['refused'])


def test_parquet_as_the_hub_writes_it(tmp_path):
  pyarrow, parquet = (
    pytest.importorskip('pyarrow'),
    pytest.importorskip('pyarrow.parquet'),
  )
  notes = {
    'info': {
      'features': {
        'image': {'_type': 'Image'},
        'label': {'_type': 'ClassLabel', 'names': ['cat', 'dog']},
      }
    }
  }
  table = pyarrow.table(
    {
      'image': [{'bytes': image(n), 'path': None} for n in range(3)]
      + [{'bytes': None, 'path': 'x'}],
      'label': [0, 1, 1, 0],
    }
  )
  table = table.replace_schema_metadata({'huggingface': json.dumps(notes)})
  parquet.write_table(table, tmp_path / 'part-0.parquet', row_group_size=2)
  converted(ParquetReader([str(tmp_path / 'part-0.parquet')]), tmp_path / 'out')
  found = examples_in(tmp_path / 'out')
  assert [
    found[f'part-0/{group}/{row}']['messages'][1]['content'][0]['text']
    for group, row in ((0, 0), (0, 1), (1, 0))
  ] == ['cat', 'dog', 'dog']
  assert 'holds no bytes' in (tmp_path / 'out' / 'refused.jsonl').read_text()
  with pytest.raises(
    UserError,
    match=r"has image \(image\), label \(text\): name the prompt .*\(now 'image', 'x'\)",
  ):
    ParquetReader([str(tmp_path / 'part-0.parquet')], write='x')
  converted(
    ParquetReader([str(tmp_path / 'part-0.parquet')], read='label', write='image'),
    tmp_path / 'turned',
  )
  assert examples_in(tmp_path / 'turned')['part-0/0/0']['messages'][1]['task'] == 'draw'


@pytest.mark.parametrize(
  'name, kind',
  [('x.jsonl', 'jsonl'), ('x.tar.gz', 'tar'), ('x.parquet', 'parquet'), ('x.bin', '')],
)
def test_kinds_by_name(tmp_path, name, kind):
  (tmp_path / name).write_bytes(b'')
  assert inputs._kind_of(str(tmp_path / name)) == kind


@pytest.mark.parametrize(
  'arguments, said',
  [
    (['--input=nowhere.jsonl'], 'no such file'),
    (['--input=.', '--shards=0'], '--shards=0'),
    (['--input=tfds:a*/train'], r'--input=tfds:a\*/train: '),
    (['--input=seqio:a/train'], "needs the package 'seqio'|knows no task"),
    ([], ''),
  ],
)
def test_mistakes_at_the_command_line(tmp_path, arguments, said):
  if not arguments:
    with pytest.raises(SystemExit):
      command.main([])
    return
  with pytest.raises(UserError, match=said):
    command.main([*arguments, f'--output={tmp_path / "out"}'])
  assert not list(tmp_path.iterdir())


def test_the_command(lines, tmp_path, capsys):
  command.main(
    [f'--input={lines}', f'--output={tmp_path / "out"}', '--workers=1', '--shards=2']
  )
  assert capsys.readouterr().out.splitlines()[-1] == (
    f'convert: wrote {tmp_path}/out: 10 records in 2 shards, 9 images, 9 sounds, 0.5625 seconds; 3 refused, see '
    f'{tmp_path}/out/refused.jsonl'
  )


def test_a_flipped_bit_is_found_in_training(lines, tmp_path):
  """A record whose medium still decodes, but is another one."""
  reader = JsonLinesReader(str(lines))
  write_spill(reader, range(0, 1), tmp_path / '0.spill', 1)
  from omni_jax.data.sources.records import decode_example

  record = bytearray((tmp_path / '0.spill').read_bytes())
  wave = record.rindex(b'data') + 100
  record[wave] ^= 1
  with pytest.raises(BadRecord, match='has changed since the conversion'):
    decode_example(bytes(record), HOSTS)


@pytest.mark.skipif(not SHARED.is_dir(), reason='the shared data are not here')
def test_the_malformed_files(tmp_path):
  """Each is refused with a reason or read as it should be."""
  manifest = converted(FolderReader(str(SHARED / 'malformed')), tmp_path / 'out')
  assert examples_in(tmp_path / 'out').keys() == {
    'silence.wav',
    'loud_float.wav',
    'really_a_jpg.png',
    'really_a_wav.flac',
  }
  expected = [
    entry['file']
    for entry in json.loads((SHARED / 'malformed' / 'malformed.json').read_text())
  ]
  media = [name for name in expected if not name.endswith('.txt')]
  assert sum(manifest['refused'].values()) == len(media) - 4 == 30
  assert (
    manifest['refused']["content[0]: type 'video' is not one of text, image, audio"]
    == 6
  )
  assert collections.Counter(manifest['refused'])['file is empty'] == 2


def test_ids_are_found_once(tmp_path):
  """Of two records with one id the first of the input is kept, whichever worker was faster."""

  class Twice:
    chunk, files = 1, ()

    def __len__(self):
      return 2

    def read(self, items):
      for k in items:
        yield Found('same', lambda k=k: {'content': [{'type': 'text', 'text': str(k)}]})

  manifest = converted(Twice(), tmp_path / 'out')
  assert (
    manifest['records'] == 1
    and examples_in(tmp_path / 'out')['same']['content'][0]['text'] == '0'
  )
