"""Lines about a run reach both standard output and log.txt."""

from omni_jax.run_log import say


def test_say_writes_to_the_log_and_to_standard_output(tmp_path, capsys):
  say(str(tmp_path), 'hello')
  assert 'hello' in capsys.readouterr().out
  assert 'hello' in (tmp_path / 'log.txt').read_text()
