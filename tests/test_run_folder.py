"""Reads and writes the files in a run's folder."""

from etils import epath

from omni_jax.run_folder import read_json_lines, write_whole


def test_half_written_lines_and_a_missing_file_are_skipped(tmp_path):
  path = epath.Path(tmp_path) / 'log.jsonl'
  assert read_json_lines(path) == []
  path.write_text('{"step": 1}\n{"st\n7\n{"step": 2}\n{"step": ')
  assert read_json_lines(path) == [{'step': 1}, {'step': 2}]


def test_a_file_is_written_in_one_step(tmp_path):
  path = epath.Path(tmp_path) / 'a.json'
  write_whole(path, 'first')
  write_whole(path, 'second')
  assert path.read_text() == 'second'
  assert [file.name for file in tmp_path.iterdir()] == ['a.json']
