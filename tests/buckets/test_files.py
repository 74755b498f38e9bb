"""Files in buckets: lines are appended, and copies follow the objects."""

from etils import epath
import pytest

from omni_jax import line_file, mirror
from omni_jax.errors import UserError
from omni_jax.line_file import LineFile
from omni_jax.paths import checked, move, write_files


def test_lines_are_appended_to_objects_of_limited_size(folder, monkeypatch):
  monkeypatch.setattr(line_file, 'OBJECT_BYTES', 20)
  lines = [f'line {number}' for number in range(10)]
  file = LineFile(f'{folder}/log.txt')
  for line in lines[:5]:
    file.append(line)
  assert LineFile(file.path).lines() == lines[:5]
  # Another process goes on where this one ended.
  other = LineFile(file.path)
  for line in lines[5:]:
    other.append(line)
  assert LineFile(file.path).lines() == lines
  names = sorted(path.name for path in epath.Path(folder).iterdir())
  assert names == ['log.txt', 'log.txt.1', 'log.txt.2', 'log.txt.3']


def test_unwanted_lines_are_removed_and_the_file_still_grows(folder, monkeypatch):
  monkeypatch.setattr(line_file, 'OBJECT_BYTES', 4)
  file = LineFile(f'{folder}/log.txt')
  for number in range(6):
    file.append(str(number))
  file.keep(lambda line: int(line) < 3)
  assert file.lines() == ['0', '1', '2']
  file.append('9')
  assert LineFile(file.path).lines() == ['0', '1', '2', '9']


def test_a_line_that_cannot_be_written_now_comes_with_the_next(folder, monkeypatch):
  file = LineFile(f'{folder}/log.txt')
  file.append('first')
  with monkeypatch.context() as broken:

    def fail(*_):
      raise OSError('the network is down')

    broken.setattr(type(file.path), 'write_text', fail)
    file.append('second')
  assert LineFile(file.path).lines() == ['first']
  file.append('third')
  assert LineFile(file.path).lines() == ['first', 'second', 'third']


def test_a_moved_file_is_at_its_new_place_only(folder):
  source = epath.Path(folder) / 'a' / 'x'
  source.write_text('content')
  target = epath.Path(folder) / 'b' / 'y'
  move(source, target)
  assert not source.exists()
  assert target.read_text() == 'content'


def test_files_are_written_into_a_folder(folder):
  write_files(epath.Path(folder), {'a': b'1', 'b': b'2'})
  assert sorted(path.read_bytes() for path in epath.Path(folder).iterdir()) == [
    b'1',
    b'2',
  ]


def test_a_copy_is_made_once_and_again_when_the_object_changes(
  folder, tmp_path, monkeypatch, capfd
):
  monkeypatch.setattr(mirror, 'CACHE', str(tmp_path))
  remote = epath.Path(folder)
  (remote / 'data' / 'one').write_text('1')
  (remote / 'data' / 'sub' / 'two').write_text('2')
  copy = epath.Path(mirror.local_copy(f'{folder}/data'))
  assert (copy / 'one').read_text() == '1'
  assert (copy / 'sub' / 'two').read_text() == '2'
  assert 'copying 2 objects' in capfd.readouterr().err
  assert mirror.local_copy(f'{folder}/data') == str(copy)
  assert 'copying' not in capfd.readouterr().err
  (remote / 'data' / 'one').write_text('changed')
  mirror.local_copy(f'{folder}/data')
  assert 'copying 1 objects' in capfd.readouterr().err
  assert (copy / 'one').read_text() == 'changed'
  assert epath.Path(mirror.local_copy(f'{folder}/data/one')).read_text() == 'changed'


def test_a_copy_of_nothing_is_refused(folder):
  with pytest.raises(FileNotFoundError, match='no such object'):
    mirror.local_copy(f'{folder}/missing')


def test_a_bucket_is_looked_at_once(bucket):
  assert checked(f'{bucket}/run', '--workdir') == f'{bucket}/run'


def test_an_unknown_scheme_is_refused():
  with pytest.raises(
    UserError, match=r'^--out=ftp://a: ftp:// is not known, but gs://'
  ):
    checked('ftp://a', '--out')


def test_a_home_folder_is_expanded(monkeypatch, tmp_path):
  monkeypatch.setenv('HOME', str(tmp_path))
  assert checked('~/run', '--workdir') == f'{tmp_path}/run'
