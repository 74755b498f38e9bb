"""Tests the checks of converted folders.

A folder that differs from its manifest, or is not for this run, is refused when it is
open_folder.
"""

import json

from ml_collections import ConfigDict
import pytest
from samples import config as run_config
from samples import data_config, hosts_of

from omni_jax.convert.formats.chat_lines import JsonLinesReader
from omni_jax.convert.local import convert
from omni_jax.convert.run_check import RunCheck
from omni_jax.data.sources.shards import (
  check_tokenizer,
  manifest_of,
  SCHEMA,
  shards_in,
  ShardStats,
)
from omni_jax.data.sources.table import check_tokenizers, training_examples
from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer, TokenizerConfig
from omni_jax.train.stages import Run


def own_data(root='') -> ConfigDict:
  config = run_config('own_data')
  config.data.update(
    dict(source='array_record', root=str(root), train_file='train', eval_file='train')
  )
  return config


@pytest.fixture
def folder(tmp_path):
  """Returns a folder of two shards that is converted for configs/own_data.py."""
  lines = [json.dumps({'content': f'text {n}'}) for n in range(8)]
  (tmp_path / 'in.jsonl').write_text('\n'.join(lines))
  convert(
    JsonLinesReader(str(tmp_path / 'in.jsonl')),
    tmp_path / 'train',
    shards=2,
    workers=1,
    input_name='it',
    timeout=60,
    check=RunCheck.of(own_data()),
    log=lambda line: None,
  )
  return tmp_path / 'train'


def open_folder(folder):
  return training_examples(own_data(folder.parent).data, hosts_of())


def change_manifest(folder, **values) -> None:
  path = folder / 'manifest.json'
  manifest = json.loads(path.read_text())
  manifest.update(values)
  path.write_text(json.dumps(manifest))


def test_a_folder_is_read_as_it_was_written(folder):
  assert len(open_folder(folder)) == 8
  Run(own_data(folder.parent), '')


def test_a_folder_without_a_manifest_is_accepted_as_it_is(folder):
  (folder / 'manifest.json').unlink()
  next(folder.glob('*-00000-*')).unlink()
  assert 0 < len(open_folder(folder)) < 8
  check_tokenizer(str(folder), Tokenizer(TokenizerConfig()))


def test_a_file_has_no_shards_and_may_have_any_tokenizer(folder):
  file = min(folder.glob('*.array_record'))
  assert shards_in(str(file)) == shards_in(str(folder / 'nothing')) == []
  check_tokenizer(str(file), Tokenizer(TokenizerConfig()))


def test_shards_that_are_missing_extra_or_of_another_size_are_refused(folder):
  first, second = sorted(folder.glob('*.array_record'))
  data = second.read_bytes()
  second.write_bytes(data[:-1])
  sizes = f'{second.name} has {len(data) - 1:,} bytes, not {len(data):,}'
  message = rf'of another size: {sizes}\): copy the folder again'
  with pytest.raises(UserError, match=message):
    open_folder(folder)
  second.rename(folder / 'other.array_record')
  message = rf'\(missing: {second.name}; not in the manifest: other.array_record\)'
  with pytest.raises(UserError, match=message):
    open_folder(folder)
  first.unlink()
  with pytest.raises(UserError, match=rf'missing: {first.name}, {second.name};'):
    open_folder(folder)


def test_many_missing_shards_are_reported_in_one_line(tmp_path):
  stats = [ShardStats(f'{n}.array_record', 1, 9, '', {}, []) for n in range(99)]
  manifest = manifest_of(stats, 'it', None)
  (tmp_path / 'manifest.json').write_text(json.dumps(manifest))
  message = 'missing: 0.array_record, 1.array_record, 10.array_record and 96 more'
  with pytest.raises(UserError, match=message):
    shards_in(str(tmp_path))


def test_a_manifest_of_another_schema_is_refused(folder):
  change_manifest(folder, schema=SCHEMA + 1)
  message = f'manifest.json has schema {SCHEMA + 1}, but this version reads {SCHEMA}'
  with pytest.raises(UserError, match=message):
    open_folder(folder)


@pytest.mark.parametrize(
  'text',
  ['{', '[]', '{"schema": 1}', '{"schema": 1, "shards": [1]}', '"\\ud800"', 'null'],
)
def test_another_file_of_that_name_is_refused(folder, text):
  (folder / 'manifest.json').write_text(text)
  with pytest.raises(UserError, match='is not the manifest of a conversion'):
    open_folder(folder)


def test_another_tokenizer_is_refused_before_the_first_stage(folder):
  config = own_data(folder.parent)
  config.model.tokenizer.languages = ('en', 'de')
  of_folder = RunCheck.of(own_data()).hosts.tokenizer.fingerprint()
  tokenizer = RunCheck.of(config).hosts.tokenizer
  of_run = tokenizer.fingerprint()
  tokenizers = f'for the tokenizer {of_folder}, but this run uses {of_run}'
  message = f'train was converted {tokenizers}: convert the data again'
  with pytest.raises(UserError, match=message):
    Run(config, '')
  sources = dict(a=dict(source='text'), b=config.data.to_dict())
  mixed = data_config(source='mixture', sources=sources)
  with pytest.raises(UserError, match=message):
    check_tokenizers(mixed, tokenizer)
  for fingerprint in (None, of_run):
    change_manifest(folder, tokenizer=fingerprint)
    Run(config, '')


def test_an_old_manifest_without_fingerprints_is_accepted(folder):
  manifest = json.loads((folder / 'manifest.json').read_text())
  del manifest['tokenizer']
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  Run(own_data(folder.parent), '')
  assert len(open_folder(folder)) == 8
