"""`omni_jax.convert --config=…`: what the run cannot take is refused, and the manifest says for which tokenizer it is."""

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
  """The process ends here."""


def own_data() -> RunCheck:
  return RunCheck.of(runpy.run_path(str(FILE))['get_config']())


@pytest.fixture
def lines(tmp_path):
  """One example that fits, one that is too long, one in a language without a token."""
  rows = [
    {'id': 'fits', 'content': 'short'},
    {'id': 'long', 'content': 'a' * 200},
    {
      'id': 'german',
      'messages': [{'role': 'assistant', 'language': 'de', 'content': 'ja'}],
    },
  ]
  (tmp_path / 'in.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  return tmp_path / 'in.jsonl'


def test_a_run_refuses_what_it_could_not_take(lines, tmp_path):
  def made(name, *words):
    command.main(
      [f'--input={lines}', f'--output={tmp_path / name}', '--shards=2', *words]
    )
    refused = (tmp_path / name / 'refused.jsonl').read_text().splitlines()
    return (
      json.loads((tmp_path / name / 'manifest.json').read_text()),
      {line['id']: line['reason'] for line in map(json.loads, refused)},
    )

  manifest, refused = made('own', CONFIG, '--workers=2')
  assert (
    manifest['records'] == 1
    and manifest['tokenizer'] == own_data().hosts.tokenizer.fingerprint()
  )
  assert refused['german'] == "no token <lang:de> in this run; lang is one of ['en']"
  assert refused['long'].endswith('room for: length 202 of 96')
  larger, refused = made(
    'larger',
    CONFIG,
    '--workers=1',
    '--config.data.budget.length=256',
    "--config.model.tokenizer.languages=('en', 'de')",
  )
  assert (
    larger['records'] == 3
    and not refused
    and larger['tokenizer'] not in (None, manifest['tokenizer'])
  )
  anyone, refused = made('anyone', '--workers=1')
  assert anyone['records'] == 3 and not refused and anyone['tokenizer'] is None


def test_the_run_must_be_the_same_to_go_on(lines, tmp_path):
  class Dies(JsonLinesReader):
    def read(self, items):
      raise Killed

  options = dict(shards=2, workers=1, said='it', timeout=60, log=lambda line: None)
  with pytest.raises(Killed):
    command.convert(Dies(str(lines)), tmp_path / 'out', **options)
  with pytest.raises(UserError, match='was begun with another config'):
    command.convert(
      JsonLinesReader(str(lines)), tmp_path / 'out', check=own_data(), **options
    )


@pytest.mark.parametrize(
  'words, said',
  [
    (['--config=nowhere.py'], 'nowhere.py'),
    ([CONFIG, '--config.data.budget.lenth=2'], 'lenth'),
    (['--config.data.budget.length=2'], 'give --config=FILE'),
    (['--config='], 'give --config=FILE'),
    ([CONFIG, '--config.data.budget.length=long'], 'long'),
  ],
)
def test_mistakes_in_the_config(lines, tmp_path, words, said):
  with pytest.raises(UserError, match=said):
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
    f'import sys; from omni_jax.convert.__main__ import main; main({words!r})\n'
    'assert not {"jax", "flax", "grain", "orbax", "apache_beam"} & sys.modules.keys()'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    check=False,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  assert not done.returncode, done.stderr
