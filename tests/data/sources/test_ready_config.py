"""Configs, mixtures and `convert` name the ready sets."""

import pickle

from data.sources.ready_sets import HOSTS, open_set, prompt_and_answer
from ml_collections import ConfigDict
import numpy as np
import pytest
from samples import data_config

from omni_jax.convert.inputs import reader_of
from omni_jax.convert.local import convert
from omni_jax.data.sources.ready.sets import READY
from omni_jax.data.sources.records import ArrayRecordExamples
from omni_jax.data.sources.table import held_out, training_examples, training_payloads
from omni_jax.errors import UserError
from omni_jax.evaluate.tasks.answers import case_of


def config(root, source, **values) -> ConfigDict:
  return data_config(source=source, root=str(root), **values)


def test_one_line_of_a_config_names_a_set(root):
  counts = {
    'fsdd': (8, 4),
    'mnist': (10, 2),
    'emoji': (4, 3),
    'barista': (2, 1),
    'text20': (40, 40),
  }
  assert counts.keys() == READY.keys()
  for name, (train, test) in counts.items():
    assert len(training_examples(config(root, name), HOSTS)) == train
    assert len(held_out(config(root, name), HOSTS)) == test
  settings = config(root, 'emoji', language='de,fr', write='image')
  examples = training_examples(settings, HOSTS)
  assert [prompt_and_answer(example)[0]['text'] for example in examples] == [
    'rot',
    'rouge',
  ]
  message = r'name the folder that holds barista_speech/ with --config\.data\.root=DIR'
  with pytest.raises(UserError, match=message):
    training_examples(config('', 'barista'), HOSTS)


def test_a_speaker_is_left_out_and_the_codec_learns_the_others(root):
  settings = config(root, 'fsdd', write='audio', leave_out='bob')
  examples = training_examples(settings, HOSTS)
  assert {prompt_and_answer(example)[2]['voice'] for example in examples} == {'ann'}
  assert len(training_payloads(settings, HOSTS, 'audio')) == 4


def test_a_mixture_holds_out_what_its_parts_do(root):
  parts = {
    'a': dict(source='mnist'),
    'b': dict(source='fsdd', write='audio', weight=2.0),
    'c': dict(source='barista', eval_split=''),
  }
  settings = config(root, 'mixture', eval_file='', sources=parts)
  assert len(training_examples(settings, HOSTS)) == 10 + 8 + 2
  examples = held_out(settings, HOSTS)
  assert examples.path == 'a, b'
  assert case_of(examples.encoded(0)).group == 'mnist_image_to_text'
  assert case_of(examples.encoded(2)).group == 'fsdd_text_to_speech'
  assert examples[2]['id'].startswith('b/fsdd/test/')
  del settings.sources['a']
  del settings.sources['b']
  with pytest.raises(UserError, match="source='mixture' holds out nothing"):
    held_out(settings, HOSTS)


class Flags:
  """Stands for the flags of the command `convert`."""

  def __init__(self, **values):
    self.kind = ''
    self.rate = 0
    self.module = ''
    self.read = ''
    self.write = ''
    self.language = ''
    self.__dict__.update(values)


def test_a_set_is_converted(root, tmp_path):
  reader = reader_of(Flags(input='emoji:train', root=str(root), language='en,de'))
  convert(
    pickle.loads(pickle.dumps(reader)),
    tmp_path / 'out',
    shards=2,
    workers=1,
    input_name='it',
    timeout=60,
    log=lambda line: None,
  )
  shards = sorted((tmp_path / 'out').glob('*.array_record'))
  converted = {example['id']: example for example in ArrayRecordExamples(shards, HOSTS)}
  expected = list(open_set(root, 'emoji', languages=('en', 'de')))
  assert converted.keys() == {example['id'] for example in expected}
  for example in expected:
    other = converted[example['id']]
    image, name, _ = prompt_and_answer(example)
    other_image, other_name, _ = prompt_and_answer(other)
    np.testing.assert_array_equal(image['pixels'], other_image['pixels'])
    assert name == other_name
    assert other['meta']['group'] == 'emoji_image_to_text'
  with pytest.raises(UserError, match=r"^--input=emoji:valid: emoji: no split 'valid'"):
    reader_of(Flags(input='emoji:valid', root=str(root)))
  message = '--input=emoji:train: give the folder that holds emoji/, --root=DIR'
  with pytest.raises(UserError, match=message):
    reader_of(Flags(input='emoji:train', root=''))
  message = r'^--input=mnist:train: .*: --root must name the folder that holds mnist/'
  with pytest.raises(UserError, match=message):
    reader_of(Flags(input='mnist:train', root=str(tmp_path / 'nothing')))
