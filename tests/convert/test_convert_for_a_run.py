"""Tests `omni_jax.convert --config=…`, a conversion for one run.

Examples that the run cannot take are refused, and the manifest records its tokenizer.
"""

import json
import os
import runpy
import subprocess
import sys

import pytest
from samples import ROOT

from omni_jax.convert import __main__ as command
from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.run_check import RunCheck
from omni_jax.errors import UserError

FILE = ROOT / 'configs' / 'own_data.py'
CONFIG = f'--config={FILE}'


class Killed(Exception):
  """Takes the place of a kill of the process."""


def own_data_check() -> RunCheck:
  """Returns the check of a run of configs/own_data.py."""
  return RunCheck.of(runpy.run_path(str(FILE))['get_config']())


@pytest.fixture
def lines(tmp_path):
  """Returns a file of three examples.

  One fits, one is too long, and one is in a language without a token.
  """
  german = {'role': 'assistant', 'language': 'de', 'content': 'ja'}
  rows = [
    {'id': 'fits', 'content': 'short'},
    {'id': 'long', 'content': 'a' * 200},
    {'id': 'german', 'messages': [german]},
  ]
  path = tmp_path / 'in.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  return path


def test_a_run_refuses_examples_that_it_could_not_take(lines, tmp_path):
  def convert(name: str, *words: str) -> tuple[dict, dict[str, str]]:
    """Returns the manifest, and the reasons for refusing examples by id."""
    output = tmp_path / name
    command.main([f'--input={lines}', f'--output={output}', '--shards=2', *words])
    manifest = json.loads((output / 'manifest.json').read_text())
    reasons = {}
    for line in (output / 'refused.jsonl').read_text().splitlines():
      refused = json.loads(line)
      reasons[refused['id']] = refused['reason']
    return manifest, reasons

  manifest, refused = convert('own', CONFIG, '--workers=2')
  assert manifest['records'] == 1
  assert manifest['tokenizer'] == own_data_check().hosts.tokenizer.fingerprint()
  assert refused['german'] == "no token <lang:de> in this run; lang is one of ['en']"
  assert refused['long'].endswith('room for: length 202 of 96')
  larger, refused = convert(
    'larger',
    CONFIG,
    '--workers=1',
    '--config.data.budget.length=256',
    "--config.model.tokenizer.languages=('en', 'de')",
  )
  assert larger['records'] == 3
  assert not refused
  assert larger['tokenizer'] not in (None, manifest['tokenizer'])
  for_any_run, refused = convert('any', '--workers=1')
  assert for_any_run['records'] == 3
  assert not refused
  assert for_any_run['tokenizer'] is None


def test_a_conversion_is_resumed_only_for_the_same_run(lines, tmp_path):
  class DyingReader(JsonLinesReader):
    def read(self, items):
      raise Killed

  options = dict(
    shards=2, workers=1, input_name='it', timeout=60, log=lambda line: None
  )
  with pytest.raises(Killed):
    command.convert(DyingReader(str(lines)), tmp_path / 'out', **options)
  reader = JsonLinesReader(str(lines))
  with pytest.raises(UserError, match='was begun with different config'):
    command.convert(reader, tmp_path / 'out', check=own_data_check(), **options)


@pytest.mark.parametrize(
  'words, message',
  [
    (['--config=nowhere.py'], 'nowhere.py'),
    ([CONFIG, '--config.data.budget.lenth=2'], 'lenth'),
    (['--config.data.budget.length=2'], 'give --config=FILE'),
    (['--config='], 'give --config=FILE'),
    ([CONFIG, '--config.data.budget.length=long'], 'long'),
  ],
)
def test_mistakes_in_the_config_are_refused(lines, tmp_path, words, message):
  with pytest.raises(UserError, match=message):
    command.main([f'--input={lines}', f'--output={tmp_path / "out"}', *words])
  assert not (tmp_path / 'out').exists()


@pytest.mark.parametrize(
  'words', [['--worker=2'], ['--config', 'configs/own_data.py'], ['more']]
)
def test_unknown_arguments_are_refused(lines, tmp_path, words, capsys):
  with pytest.raises(SystemExit):
    command.main([f'--input={lines}', f'--output={tmp_path / "out"}', *words])
  assert f'unrecognized arguments: {" ".join(words)}' in capsys.readouterr().err


def test_a_conversion_for_a_run_loads_no_jax(lines, tmp_path):
  words = [f'--input={lines}', f'--output={tmp_path / "out"}', '--workers=1', CONFIG]
  code = (
    'import sys\n'
    'from omni_jax.convert.__main__ import main\n'
    f'main({words!r})\n'
    'assert not {"jax", "flax", "grain", "orbax", "apache_beam"} & sys.modules.keys()'
  )
  process = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert not process.returncode, process.stderr
