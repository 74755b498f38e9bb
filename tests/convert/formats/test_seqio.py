"""SeqIO tasks as an input, against a stand-in with SeqIO's interface; the real package brings TensorFlow (2 GB)."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from omni_jax.convert.formats.seqio import SeqioReader
from omni_jax.errors import BadRecord, UserError


class Vocabulary:
  def decode(self, ids):
    return ''.join(map(chr, ids))


class Task:
  """As much of `seqio.Task` as is used, with its signatures."""

  def __init__(self, rows):
    self._rows, self.splits = rows, {'train', 'test'}
    self.output_features = {
      name: SimpleNamespace(vocabulary=Vocabulary()) for name in ('inputs', 'targets')
    }

  def get_dataset(self, sequence_length=None, split='train', shuffle=True):
    assert not shuffle and sequence_length is None and split in self.splits
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
  def get_mixture_or_task(name):
    if name != 'mine':
      raise ValueError(f'No Task or Mixture found with name: {name}')
    return Task(ROWS)

  monkeypatch.setitem(
    sys.modules, 'seqio', SimpleNamespace(get_mixture_or_task=get_mixture_or_task)
  )


def test_inputs_are_shown_and_targets_answered(seqio):
  reader = SeqioReader('mine/test', language='en')
  found = list(reader.read(range(len(reader))))
  assert [one.id for one in found] == [f'mine/test:{n}' for n in range(4)]
  user, assistant = found[0].make()['messages']
  assert (
    user['content'][0]['text'] == 'hi'
    and assistant['content'][0]['text'] == 'a'
    and assistant['language'] == 'en'
  )
  assert found[1].make()['messages'][0]['content'][0]['text'] == 'what?'
  assert found[2].make() == {'content': [{'type': 'text', 'text': 'bc'}]}
  with pytest.raises(BadRecord, match='has no targets, but other'):
    found[3].make()


def test_mistakes_are_named(seqio, monkeypatch):
  with pytest.raises(UserError, match="knows no task or mixture 'his'"):
    SeqioReader('his/test')
  with pytest.raises(UserError, match="no split 'dev'; there are test, train"):
    SeqioReader('mine/dev')
  with pytest.raises(UserError, match="needs the package 'no_such_tasks'"):
    SeqioReader('mine/test', module='no_such_tasks')
  monkeypatch.setitem(sys.modules, 'seqio', None)
  with pytest.raises(UserError, match=r"pip install 'omni_jax\[tf\]'"):
    SeqioReader('mine/test')
