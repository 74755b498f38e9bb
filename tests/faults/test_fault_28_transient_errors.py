"""Fault 28: the storage fails for a moment while a checkpoint or data are read.

Reading is attempted a few more times, each with a line in the log, but not forever.
"""

import errno
import io
import os
import tarfile
import zipfile

from etils import epath
from faults.records import HOSTS, image, loader, sound, write_lines
from faults.toy import resume, same, save_steps, stage_folder, state_at
import orbax.checkpoint as ocp
import pyarrow
from pyarrow import parquet
import pytest

from omni_jax import retry
from omni_jax.checkpoint import step_folders
from omni_jax.convert.formats.parquet import ParquetReader
from omni_jax.convert.formats.tar import TarReader
from omni_jax.data.sources import records
from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.ready.files import Archive
from omni_jax.data.sources.records import (
  ArrayRecordExamples,
  encode_example,
  write_array_record,
)
from omni_jax.errors import BadRecord, UserError

TRANSIENT = OSError(errno.EIO, 'a moment please')
TRANSIENT_IN_RECORDS = RuntimeError(
  'pread() failed: Input/output error; reading a.array_record; at byte 65600'
)
ALWAYS = 10**6  # failures; far more than there are attempts
# Each is longer than what is read of a tar file at a time.
LONG_SOUNDS = [sound(k, 9000) for k in range(3)]
IN_SECOND_SOUND = 25_000  # offset in a tar file of these sounds


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
  """Shortens the pauses between attempts."""
  monkeypatch.setattr(retry, 'PAUSE', 0.001)


@pytest.fixture
def workdir(tmp_path):
  """Returns the folder of a run with steps 1 and 2."""
  return save_steps(tmp_path, 1, 2)


def make_fail(monkeypatch, owner, name, times, error):
  """Makes a function fail this many times before it works; returns its calls."""
  function = getattr(owner, name)
  calls = []

  def failing_function(*args, **kwargs):
    calls.append(1)
    if len(calls) <= times:
      raise error
    return function(*args, **kwargs)

  monkeypatch.setattr(owner, name, failing_function)
  return calls


def lines_with(words, caplog):
  """Returns the lines of the log with these words."""
  lines = [record.getMessage() for record in caplog.records]
  return [line for line in lines if words in line]


def further_attempts(caplog):
  """Returns the lines of the log that announce another attempt."""
  return lines_with('follows', caplog)


@pytest.mark.parametrize(
  'owner, name',
  [(ocp.PyTreeCheckpointHandler, 'restore'), (type(epath.Path('/')), 'read_bytes')],
  ids=['arrays', 'manifest'],
)
def test_fault_28_two_failures_are_waited_for_and_logged(
  workdir, monkeypatch, caplog, owner, name
):
  make_fail(monkeypatch, owner, name, 2, TRANSIENT)
  restored, lines = resume(workdir)
  assert same(restored.state, state_at(2))
  assert not lines
  second, third = lines_with('cannot be read', caplog)
  assert 'attempt 2 of 3 follows' in second
  assert 'attempt 3 of 3 follows' in third


def test_fault_28_a_lasting_failure_ends_the_command_and_leaves_good_steps_alone(
  workdir, monkeypatch
):
  error = OSError(errno.EIO, 'gone for long')
  calls = make_fail(monkeypatch, ocp.PyTreeCheckpointHandler, 'restore', ALWAYS, error)
  message = (
    r'toy/2/model cannot be read: .*gone for long; start again when it can be read'
  )
  with pytest.raises(UserError, match=message):
    resume(workdir)
  assert len(calls) == retry.ATTEMPTS
  folder = stage_folder(workdir)
  assert step_folders.complete(folder) == [1, 2]
  assert not step_folders.quarantined(folder)


class FailingReader:
  """An ArrayRecord reader whose reads fail while `failures_left` is positive.

  A reader that has failed once always fails, like a broken handle.
  """

  failures_left = 0

  def __init__(self, reader):
    self._reader = reader
    self._broken = False

  def read(self, positions):
    if self._broken or FailingReader.failures_left > 0:
      FailingReader.failures_left -= 1
      self._broken = True
      raise TRANSIENT_IN_RECORDS
    return self._reader.read(positions)

  def __getattr__(self, name):
    return getattr(self._reader, name)


@pytest.fixture
def examples(tmp_path):
  """Returns the examples of a JSON lines file about three images."""
  media = {f'{k}.png': image(k) for k in range(3)}
  return JsonLines(write_lines(tmp_path / 'data', media), HOSTS)


def tar_of(folder):
  """Returns a reader of a tar file of three sounds."""
  with tarfile.open(folder / 'a.tar', 'w') as tar:
    for k in range(3):
      info = tarfile.TarInfo(f'{k}.wav')
      info.size = len(LONG_SOUNDS[k])
      tar.addfile(info, io.BytesIO(LONG_SOUNDS[k]))
  return TarReader([str(folder / 'a.tar')])


def parquet_of(folder):
  """Returns a reader of a Parquet file of three images."""
  rows = {'image': [{'bytes': image(k)} for k in range(3)], 'text': ['a'] * 3}
  parquet.write_table(pyarrow.table(rows), folder / 'a.parquet')
  return ParquetReader([str(folder / 'a.parquet')])


def records_of(folder, examples, monkeypatch):
  """Returns examples as records, and the files opened by the `FailingReader` of them."""
  path = folder / 'a.array_record'
  encoded = [encode_example(examples.encoded(k), examples.read_file) for k in range(3)]
  write_array_record(path, encoded)
  from_records = ArrayRecordExamples(path, HOSTS)
  opened_files = []
  open_reader = records._reader

  def open_failing_reader(path):
    opened_files.append(path)
    return FailingReader(open_reader(path))

  monkeypatch.setattr(records, '_reader', open_failing_reader)
  return from_records, opened_files


def results_of(reader):
  """Returns the example, or the reason why it is bad, of each record of an input."""
  results = []
  for record in reader.read(range(len(reader))):
    try:
      results.append(record.make())
    except BadRecord as error:
      results.append(error.reason)
  return results


@pytest.mark.parametrize(
  'owner, name',
  [(os, 'open'), (os, 'read'), (os, 'pread')],
  ids=lambda x: getattr(x, '__name__', x),
)
def test_fault_28_media_and_lines_are_read_again(
  examples, monkeypatch, caplog, owner, name
):
  make_fail(monkeypatch, owner, name, 2, TRANSIENT)
  assert examples[1]['content'][1]['pixels'].shape == (8, 8, 1)
  second, _ = further_attempts(caplog)
  assert 'attempt 2 of 3 follows' in second
  assert 'a moment please' in second


@pytest.mark.parametrize(
  'name, message',
  [
    ('read', r'1\.png: cannot be read \(.*a moment please'),
    ('pread', 'the line cannot be read .*a moment please'),
  ],
)
def test_fault_28_a_lasting_failure_is_one_bad_record(
  examples, monkeypatch, caplog, name, message
):
  calls = make_fail(monkeypatch, os, name, ALWAYS, TRANSIENT)
  with pytest.raises(BadRecord, match=message):
    examples[1]
  assert len(calls) == retry.ATTEMPTS
  assert len(further_attempts(caplog)) == 2


def test_fault_28_a_broken_handle_is_replaced_by_a_new_one(
  examples, monkeypatch, caplog
):
  """After a restart of a file server, the old handle never works again."""
  assert examples[0]
  broken_handle = examples._file
  pread = os.pread

  def pread_or_fail(file, *rest):
    if file == broken_handle:
      raise OSError(errno.ESTALE, 'Stale file handle')
    return pread(file, *rest)

  monkeypatch.setattr(os, 'pread', pread_or_fail)
  assert examples[1]['id'] == '1.png'
  assert len(further_attempts(caplog)) == 1
  assert examples._file != broken_handle


def test_fault_28_missing_forbidden_or_damaged_files_are_not_waited_for(
  examples, tmp_path, monkeypatch, caplog
):
  (tmp_path / 'data' / '0.png').unlink()
  (tmp_path / 'data' / '1.png').write_bytes(b'damaged')
  with pytest.raises(BadRecord, match='no such file'):
    examples[0]
  with pytest.raises(BadRecord, match='not an image'):
    examples[1]
  for number in retry.LASTING:
    assert not retry.is_transient(OSError(number, os.strerror(number)))
  make_fail(monkeypatch, os, 'read', 1, PermissionError(errno.EACCES, 'no'))
  with pytest.raises(BadRecord, match='cannot be read'):
    examples[2]
  assert not further_attempts(caplog)


def test_fault_28_opening_is_attempted_again_as_well(tmp_path, monkeypatch, caplog):
  path = write_lines(tmp_path / 'data', {'a.png': image()})
  path_type = type(epath.Path('/'))
  make_fail(monkeypatch, path_type, 'open', 2, TRANSIENT)
  assert len(JsonLines(path, HOSTS)) == 1
  assert len(further_attempts(caplog)) == 2
  make_fail(monkeypatch, path_type, 'open', ALWAYS, TRANSIENT)
  message = r'train\.jsonl cannot be read \(a moment please\)'
  with pytest.raises(UserError, match=message):
    JsonLines(path, HOSTS)


@pytest.mark.parametrize('times', [2, ALWAYS])
def test_fault_28_records_are_read_again_by_a_new_reader(
  examples, tmp_path, monkeypatch, caplog, times
):
  from_records, opened_files = records_of(tmp_path, examples, monkeypatch)
  monkeypatch.setattr(FailingReader, 'failures_left', times)
  if times == 2:
    assert from_records[2]['id'] == '2.png'
  else:
    message = (
      r'a\.array_record:2: cannot be read \(pread\(\) failed: Input/output error'
    )
    with pytest.raises(BadRecord, match=message):
      from_records[2]
  assert len(further_attempts(caplog)) == 2
  assert len(opened_files) == retry.ATTEMPTS


def test_fault_28_only_transient_errors_of_records_are_waited_for():
  damage = (
    'Corrupted Riegeli/records file: block header hash mismatch (computed 0xe, stored '
    '0xf), block at 65536; at byte 65560'
  )
  for message, is_transient in (
    (damage, False),
    (str(TRANSIENT_IN_RECORDS), True),
    ('read() failed: Is a directory; reading /x; at byte 3', False),
    ('open() failed: No such file or directory; reading /x', False),
    ('fstat() failed: Stale file handle; x', True),
  ):
    assert records.is_transient(RuntimeError(message)) == is_transient, message


@pytest.mark.parametrize('times', [2, ALWAYS])
def test_fault_28_a_tar_file_is_read_on_from_where_it_failed(
  tmp_path, monkeypatch, caplog, times
):
  """The failure is in the middle of the archive.

  If it lasts, it is one bad record, and what was read before it is kept.
  """
  reader = tar_of(tmp_path)
  pread = os.pread
  late_calls = []

  def pread_or_fail(file, size, offset):
    if offset > IN_SECOND_SOUND:
      late_calls.append(offset)
      if len(late_calls) <= times:
        raise TRANSIENT
    return pread(file, size, offset)

  monkeypatch.setattr(os, 'pread', pread_or_fail)
  results = results_of(reader)
  assert len(further_attempts(caplog)) == 2
  if times == 2:
    assert [example['content'][0]['data'] for example in results] == LONG_SOUNDS
  else:
    assert 'cannot be read further' in results[-1]
    assert 'a moment please' in results[-1]
    assert len(results) > 1


@pytest.mark.parametrize(
  'times, error, expected_attempts',
  [
    (2, TRANSIENT, 2),
    (ALWAYS, TRANSIENT, 2),
    (ALWAYS, OSError("Couldn't deserialize thrift"), 0),
  ],
  ids=['brief', 'lasting', 'damage'],
)
def test_fault_28_a_row_group_of_parquet_is_read_again(
  tmp_path, monkeypatch, caplog, times, error, expected_attempts
):
  reader = parquet_of(tmp_path)
  make_fail(monkeypatch, parquet.ParquetFile, 'read_row_group', times, error)
  results = results_of(reader)
  assert len(further_attempts(caplog)) == expected_attempts
  if times == 2:
    assert len(results) == 3
    assert results[1]['messages'][0]['content'][0]['data'] == image(1)
  else:
    (reason,) = results
    assert 'row group cannot be read' in reason
    assert str(error) in reason


def test_fault_28_a_member_of_a_ready_set_is_read_again(tmp_path, monkeypatch, caplog):
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
    file.writestr('x', b'abc')
  archive = Archive(str(tmp_path / 'a.zip'))
  make_fail(monkeypatch, zipfile.ZipFile, 'read', 2, TRANSIENT)
  assert archive.read('x') == b'abc'
  assert len(further_attempts(caplog)) == 2
  make_fail(monkeypatch, zipfile.ZipFile, 'read', ALWAYS, TRANSIENT)
  with pytest.raises(BadRecord, match='cannot be read .*a moment please'):
    archive.read('x')


def test_fault_28_a_loader_survives_a_failure_and_counts_lasting_ones(
  examples, monkeypatch, caplog
):
  """After a brief failure, the real loader returns the same batch as without it.

  A record that cannot be read is a bad record with a name.
  """
  batch = next(loader(examples))
  reopened = JsonLines(examples.path, HOSTS)
  make_fail(monkeypatch, os, 'read', 2, TRANSIENT)
  assert same(batch, next(loader(reopened)))
  assert len(further_attempts(caplog)) == 2
  make_fail(monkeypatch, os, 'read', ALWAYS, TRANSIENT)
  message = r'11 of \d+ records are bad: 11 x cannot be read .*a moment please'
  with pytest.raises(UserError, match=message):
    next(loader(JsonLines(examples.path, HOSTS)))
