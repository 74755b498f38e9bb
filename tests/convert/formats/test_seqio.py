"""Tests the reader of SeqIO tasks against a stand-in with SeqIO's interface.

The real package would bring TensorFlow (2 GB).
"""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from omni_jax.convert.formats.seqio import SeqioReader
from omni_jax.errors import BadRecord, UserError


class Vocabulary:
  """Decodes ids as the code points of characters."""

  def decode(self, ids):
    return ''.join(map(chr, ids))


class Task:
  """The part of `seqio.Task` that the reader uses, with the same signatures."""

  def __init__(self, rows):
    self._rows = rows
    self.splits = {'train', 'test'}
    feature = SimpleNamespace(vocabulary=Vocabulary())
    self.output_features = {'inputs': feature, 'targets': feature}

  def get_dataset(self, sequence_length=None, split='train', shuffle=True):
    assert not shuffle
    assert sequence_length is None
    assert split in self.splits
    return SimpleNamespace(as_numpy_iterator=lambda: iter(self._rows))


ROWS = [
  {'inputs': np.array([104, 105]), 'targets': np.array([97])},
  {
    'inputs_pretokenized': b'what?',
    'inputs': np.array([1]),
    'targets_pretokenized': b'this',
    'targets': np.array([2]),
  },
  {'targets': np.array([98, 99])},
  {'other': b''},
]


@pytest.fixture
def seqio(monkeypatch):
  """Puts a stand-in in the place of the package seqio."""

  def get_mixture_or_task(name):
    if name != 'mine':
      raise ValueError(f'No Task or Mixture found with name: {name}')
    return Task(ROWS)

  module = SimpleNamespace(get_mixture_or_task=get_mixture_or_task)
  monkeypatch.setitem(sys.modules, 'seqio', module)


def test_the_user_shows_inputs_and_the_assistant_answers_targets(seqio):
  reader = SeqioReader('mine/test', language='en')
  examples = list(reader.read(range(len(reader))))
  assert [example.id for example in examples] == [f'mine/test:{n}' for n in range(4)]
  user, assistant = examples[0].make()['messages']
  assert user['content'][0]['text'] == 'hi'
  assert assistant['content'][0]['text'] == 'a'
  assert assistant['language'] == 'en'
  assert examples[1].make()['messages'][0]['content'][0]['text'] == 'what?'
  assert examples[2].make() == {'content': [{'type': 'text', 'text': 'bc'}]}
  with pytest.raises(BadRecord, match='has no targets, but other'):
    examples[3].make()


def test_mistakes_are_reported(seqio, monkeypatch):
  with pytest.raises(UserError, match="has no task or mixture 'his'"):
    SeqioReader('his/test')
  with pytest.raises(UserError, match="no split 'dev'; there are test, train"):
    SeqioReader('mine/dev')
  with pytest.raises(UserError, match="needs the package 'no_such_tasks'"):
    SeqioReader('mine/test', module='no_such_tasks')
  monkeypatch.setitem(sys.modules, 'seqio', None)
  with pytest.raises(UserError, match=r"pip install 'omni_jax\[tf\]'"):
    SeqioReader('mine/test')
