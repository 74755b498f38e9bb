"""Lines of a run: on the screen and in log.txt."""

from omni_jax.run_log import say


def test_say_goes_to_the_log_and_to_the_screen(tmp_path, capsys):
  say(str(tmp_path), 'hello')
  assert 'hello' in capsys.readouterr().out
  assert 'hello' in (tmp_path / 'log.txt').read_text()
