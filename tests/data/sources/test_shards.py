"""A converted folder that is not what its manifest says, or not for this run, is refused when it is opened."""

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
  """Converted for configs/own_data.py: two shards."""
  (tmp_path / 'in.jsonl').write_text(
    '\n'.join(json.dumps({'content': f'text {n}'}) for n in range(8))
  )
  convert(
    JsonLinesReader(str(tmp_path / 'in.jsonl')),
    tmp_path / 'train',
    shards=2,
    workers=1,
    said='it',
    timeout=60,
    check=RunCheck.of(own_data()),
    log=lambda line: None,
  )
  return tmp_path / 'train'


def opened(folder):
  return training_examples(own_data(folder.parent).data, hosts_of())


def changed(folder, **values) -> None:
  path = folder / 'manifest.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_folder_as_it_was_written(folder):
  assert len(opened(folder)) == 8
  Run(own_data(folder.parent), '')


def test_a_folder_without_a_manifest_is_taken_as_it_is(folder):
  (folder / 'manifest.json').unlink()
  next(folder.glob('*-00000-*')).unlink()
  assert 0 < len(opened(folder)) < 8
  check_tokenizer(str(folder), Tokenizer(TokenizerConfig()))


def test_a_file_is_no_folder(folder):
  file = min(folder.glob('*.array_record'))
  assert shards_in(str(file)) == shards_in(str(folder / 'nothing')) == []
  check_tokenizer(str(file), Tokenizer(TokenizerConfig()))


def test_shards_that_are_missing_extra_or_of_another_size(folder):
  first, second = sorted(folder.glob('*.array_record'))
  data = second.read_bytes()
  second.write_bytes(data[:-1])
  with pytest.raises(
    UserError,
    match=rf'of another size: {second.name} has {len(data) - 1:,} bytes, not {len(data):,}\): '
    'copy the folder again',
  ):
    opened(folder)
  second.rename(folder / 'other.array_record')
  with pytest.raises(
    UserError,
    match=rf'\(missing: {second.name}; not in the manifest: other.array_record\)',
  ):
    opened(folder)
  first.unlink()
  with pytest.raises(UserError, match=rf'missing: {first.name}, {second.name};'):
    opened(folder)


def test_many_missing_shards_are_one_line(tmp_path):
  stats = [ShardStats(f'{n}.array_record', 1, 9, '', {}, []) for n in range(99)]
  (tmp_path / 'manifest.json').write_text(json.dumps(manifest_of(stats, 'it', None)))
  with pytest.raises(
    UserError,
    match='missing: 0.array_record, 1.array_record, 10.array_record and 96 more',
  ):
    shards_in(str(tmp_path))


def test_another_schema(folder):
  changed(folder, schema=SCHEMA + 1)
  with pytest.raises(
    UserError,
    match=f'manifest.json: has schema {SCHEMA + 1}, this version reads {SCHEMA}',
  ):
    opened(folder)


@pytest.mark.parametrize(
  'text',
  ['{', '[]', '{"schema": 1}', '{"schema": 1, "shards": [1]}', '"\\ud800"', 'null'],
)
def test_something_else_under_its_name(folder, text):
  (folder / 'manifest.json').write_text(text)
  with pytest.raises(UserError, match='is not the manifest of a conversion'):
    opened(folder)


def test_another_tokenizer_is_refused_before_the_first_stage(folder):
  config = own_data(folder.parent)
  config.model.tokenizer.languages = ('en', 'de')
  theirs, ours = (
    RunCheck.of(c).hosts.tokenizer.fingerprint() for c in (own_data(), config)
  )
  said = rf'train was converted for the tokenizer {theirs}, this run has {ours}: convert again'
  with pytest.raises(UserError, match=said):
    Run(config, '')
  sources = dict(a=dict(source='text'), b=config.data.to_dict())
  mixed = data_config(source='mixture', sources=sources)
  with pytest.raises(UserError, match=said):
    check_tokenizers(mixed, RunCheck.of(config).hosts.tokenizer)
  for kept in (None, ours):
    changed(folder, tokenizer=kept)
    Run(config, '')


def test_a_manifest_of_the_time_before_fingerprints(folder):
  manifest = json.loads((folder / 'manifest.json').read_text())
  del manifest['tokenizer']
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  Run(own_data(folder.parent), '')
  assert len(opened(folder)) == 8
