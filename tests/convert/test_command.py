"""A conversion writes the records of its input, and can be resumed.

The bytes of the output do not depend on how the conversion runs, and an output never
appears half finished.
"""

import errno
import functools
import json
import multiprocessing
import os
import signal
import time

from convert.converting import convert, examples_in, HOSTS, image, refused_in, sound
import numpy as np
import pytest

from omni_jax.convert import __main__ as command
from omni_jax.convert import inputs, local
from omni_jax.convert.conversion import index_of, shard_of, write_spill
from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.formats.folder import FolderReader
from omni_jax.convert.formats.reader import InputExample
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.errors import BadRecord, UserError


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
