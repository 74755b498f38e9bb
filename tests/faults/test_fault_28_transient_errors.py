"""Fault 28: the storage fails for a moment while a checkpoint or data are read: a few more attempts, each said, not for ever."""

import errno
import io
import os
import tarfile
import zipfile

from etils import epath
from faults.records import HOSTS, image, lines, loader, sound
from faults.toy import resumed, same, saved, states
import jax
import numpy as np
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


@pytest.fixture
def workdir(tmp_path, monkeypatch):
  monkeypatch.setattr(retry, 'PAUSE', 0.01)
  return saved(tmp_path, 1, 2)


def failing(monkeypatch, owner, name, times, error):
  """The function fails so often, and then works."""
  right, calls = getattr(owner, name), []

  def wrong(*args, **kwargs):
    calls.append(1)
    if len(calls) <= times:
      raise error
    return right(*args, **kwargs)

  monkeypatch.setattr(owner, name, wrong)
  return calls


@pytest.mark.parametrize(
  'owner, name',
  [(ocp.PyTreeCheckpointHandler, 'restore'), (type(epath.Path('/')), 'read_bytes')],
  ids=['arrays', 'manifest'],
)
def test_fault_28_two_failures_are_waited_for_and_said(
  workdir, monkeypatch, caplog, owner, name
):
  failing(monkeypatch, owner, name, 2, OSError(errno.EIO, 'a moment please'))
  found, said = resumed(workdir)
  assert same(found.state, states(2)[0]) and not said
  lines = [
    record.getMessage()
    for record in caplog.records
    if 'cannot be read' in record.getMessage()
  ]
  assert (
    len(lines) == 2
    and 'attempt 2 of 3 follows' in lines[0]
    and 'attempt 3 of 3 follows' in lines[1]
  )


def test_fault_28_what_lasts_ends_the_command_and_puts_no_good_step_aside(
  workdir, monkeypatch
):
  calls = failing(
    monkeypatch,
    ocp.PyTreeCheckpointHandler,
    'restore',
    99,
    OSError(errno.EIO, 'gone for long'),
  )
  with pytest.raises(
    UserError,
    match=r'toy/2/model cannot be read: .*gone for long; start again when it can',
  ):
    resumed(workdir)
  assert len(calls) == 3
  folder = epath.Path(workdir / 'checkpoints' / 'toy')
  assert step_folders.listed(folder) == [1, 2] and not step_folders.aside(folder)


WAIT = OSError(errno.EIO, 'a moment please')
LONG = [
  sound(k, 9000) for k in range(3)
]  # longer than what is read of a tar file at a time
WAITS = RuntimeError(
  'pread() failed: Input/output error; reading a.array_record; at byte 65600'
)


class Reader:
  """An ArrayRecord reader whose reading fails so often, as often as it is opened anew."""

  left = 0

  def __init__(self, right):
    self._right, self._failed = right, False

  def read(self, positions):
    if self._failed or Reader.left > 0:
      Reader.left, self._failed = (
        Reader.left - 1,
        True,
      )  # what has failed once does so for ever
      raise WAITS
    return self._right.read(positions)

  def __getattr__(self, name):
    return getattr(self._right, name)


def attempts(caplog):
  return [
    record.getMessage() for record in caplog.records if 'follows' in record.getMessage()
  ]


@pytest.fixture
def quick(monkeypatch):
  monkeypatch.setattr(retry, 'PAUSE', 0.001)
  return monkeypatch


@pytest.fixture
def examples(tmp_path):
  return JsonLines(
    lines(tmp_path / 'data', {f'{k}.png': image(k) for k in range(3)}), HOSTS
  )


def tar_of(folder):
  with tarfile.open(folder / 'a.tar', 'w') as tar:
    for k in range(3):
      info = tarfile.TarInfo(f'{k}.wav')
      info.size = len(LONG[k])
      tar.addfile(info, io.BytesIO(LONG[k]))
  return TarReader([str(folder / 'a.tar')])


def parquet_of(folder):
  rows = {'image': [{'bytes': image(k)} for k in range(3)], 'text': ['a'] * 3}
  parquet.write_table(pyarrow.table(rows), folder / 'a.parquet')
  return ParquetReader([str(folder / 'a.parquet')])


def records_of(folder, examples, quick):
  write_array_record(
    folder / 'a.array_record',
    [encode_example(examples.encoded(k), examples.read_file) for k in range(3)],
  )
  made = ArrayRecordExamples(folder / 'a.array_record', HOSTS)
  opened, right = [], records._reader
  quick.setattr(
    records, '_reader', lambda path: opened.append(path) or Reader(right(path))
  )
  return made, opened


def made_by(reader):
  """[example or reason] of a conversion's input."""
  found = []
  for one in reader.read(range(len(reader))):
    try:
      found.append(one.make())
    except BadRecord as error:
      found.append(error.reason)
  return found


@pytest.mark.parametrize(
  'owner, name',
  [(os, 'open'), (os, 'read'), (os, 'pread')],
  ids=lambda x: getattr(x, '__name__', x),
)
def test_fault_28_media_and_lines_are_read_again(examples, quick, caplog, owner, name):
  failing(quick, owner, name, 2, WAIT)
  assert examples[1]['content'][1]['pixels'].shape == (8, 8, 1)
  said = attempts(caplog)
  assert (
    len(said) == 2
    and 'attempt 2 of 3 follows' in said[0]
    and 'a moment please' in said[0]
  )


@pytest.mark.parametrize(
  'name, said',
  [
    ('read', r'1\.png: cannot be read \(.*a moment please'),
    ('pread', 'the line cannot be read .*a moment please'),
  ],
)
def test_fault_28_what_lasts_is_one_bad_record(examples, quick, caplog, name, said):
  calls = failing(quick, os, name, 99, WAIT)
  with pytest.raises(BadRecord, match=said):
    examples[1]
  assert len(calls) == retry.ATTEMPTS and len(attempts(caplog)) == 2


def test_fault_28_a_handle_that_is_broken_is_opened_anew(examples, quick, caplog):
  """As after a server of files came back: the old handle never works again."""
  assert examples[0]
  broken, right = examples._file, os.pread

  def pread(file, *rest):
    if file == broken:
      raise OSError(errno.ESTALE, 'Stale file handle')
    return right(file, *rest)

  quick.setattr(os, 'pread', pread)
  assert (
    examples[1]['id'] == '1.png'
    and len(attempts(caplog)) == 1
    and examples._file != broken
  )


def test_fault_28_what_is_missing_or_not_allowed_or_damaged_is_not_waited_for(
  examples, tmp_path, quick, caplog
):
  (tmp_path / 'data' / '0.png').unlink()
  (tmp_path / 'data' / '1.png').write_bytes(b'torn')
  for k, said in ((0, 'no such file'), (1, 'not an image')):
    with pytest.raises(BadRecord, match=said):
      examples[k]
  for number in retry.LASTING:
    assert not retry.may_pass(OSError(number, os.strerror(number)))
  failing(quick, os, 'read', 1, PermissionError(errno.EACCES, 'no'))
  with pytest.raises(BadRecord, match='cannot be read'):
    examples[2]
  assert not attempts(caplog)


def test_fault_28_opening_is_patient_too(tmp_path, quick, caplog):
  path = lines(tmp_path / 'data', {'a.png': image()})
  failing(quick, type(epath.Path('/')), 'open', 2, WAIT)
  assert len(JsonLines(path, HOSTS)) == 1 and len(attempts(caplog)) == 2
  failing(quick, type(epath.Path('/')), 'open', 99, WAIT)
  with pytest.raises(
    UserError, match=r'train\.jsonl: cannot be read \(a moment please\)'
  ):
    JsonLines(path, HOSTS)


@pytest.mark.parametrize('times', [2, 99])
def test_fault_28_records_are_read_again_by_a_new_reader(
  examples, tmp_path, quick, caplog, times
):
  made, opened = records_of(tmp_path, examples, quick)
  quick.setattr(Reader, 'left', times)
  if times == 2:
    assert made[2]['id'] == '2.png'
  else:
    with pytest.raises(
      BadRecord,
      match=r'a\.array_record:2: cannot be read \(pread\(\) failed: Input/output error',
    ):
      made[2]
  assert len(attempts(caplog)) == 2 and len(opened) == 3


def test_fault_28_a_torn_record_is_not_waited_for(caplog):
  torn = 'Corrupted Riegeli/records file: block header hash mismatch (computed 0xe, stored 0xf), block at 65536; at byte 65560'
  for said, passes in (
    (torn, False),
    (str(WAITS), True),
    ('read() failed: Is a directory; reading /x; at byte 3', False),
    ('open() failed: No such file or directory; reading /x', False),
    ('fstat() failed: Stale file handle; x', True),
  ):
    assert records.may_pass(RuntimeError(said)) == passes, said


@pytest.mark.parametrize('times', [2, 99])
def test_fault_28_a_tar_goes_on_where_it_stood(tmp_path, quick, caplog, times):
  """In the middle of the archive; what lasts is one bad record, and what was read before it is kept."""
  reader, right, calls = tar_of(tmp_path), os.pread, []

  def pread(file, size, at):
    calls.append(at)
    if at > 25000 and sum(one > 25000 for one in calls) <= times:
      raise WAIT
    return right(file, size, at)

  quick.setattr(os, 'pread', pread)
  found = made_by(reader)
  assert len(attempts(caplog)) == 2
  if times == 2:
    assert [one['content'][0]['data'] for one in found] == LONG
  else:
    assert (
      'cannot be read further' in found[-1]
      and 'a moment please' in found[-1]
      and len(found) > 1
    )


@pytest.mark.parametrize(
  'times, error, waits',
  [(2, WAIT, 2), (99, WAIT, 2), (99, OSError("Couldn't deserialize thrift"), 0)],
  ids=['passes', 'lasts', 'damage'],
)
def test_fault_28_a_row_group_of_parquet_is_read_again(
  tmp_path, quick, caplog, times, error, waits
):
  reader = parquet_of(tmp_path)
  failing(quick, parquet.ParquetFile, 'read_row_group', times, error)
  found = made_by(reader)
  assert len(attempts(caplog)) == waits
  if times == 2:
    assert len(found) == 3 and found[1]['messages'][0]['content'][0]['data'] == image(1)
  else:
    assert (
      len(found) == 1
      and 'row group cannot be read' in found[0]
      and str(error) in found[0]
    )


def test_fault_28_a_member_of_a_ready_set_is_read_again(tmp_path, quick, caplog):
  with zipfile.ZipFile(tmp_path / 'a.zip', 'w') as file:
    file.writestr('x', b'abc')
  archive = Archive(str(tmp_path / 'a.zip'))
  failing(quick, zipfile.ZipFile, 'read', 2, WAIT)
  assert archive.read('x') == b'abc' and len(attempts(caplog)) == 2
  failing(quick, zipfile.ZipFile, 'read', 99, WAIT)
  with pytest.raises(BadRecord, match='cannot be read .*a moment please'):
    archive.read('x')


def test_fault_28_a_run_goes_on_over_a_failure_and_counts_what_lasts(
  examples, quick, caplog
):
  """The real loader: the same batch as without, and a record that cannot be read is a bad one with its name."""
  right = next(loader(examples))
  again = JsonLines(examples.path, HOSTS)
  failing(quick, os, 'read', 2, WAIT)
  jax.tree.map(np.testing.assert_array_equal, right, next(loader(again)))
  assert len(attempts(caplog)) == 2
  failing(quick, os, 'read', 10**6, WAIT)
  with pytest.raises(
    UserError, match=r'11 of \d+ records are bad: 11 x cannot be read .*a moment please'
  ):
    next(loader(JsonLines(examples.path, HOSTS)))
