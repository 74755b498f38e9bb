"""Fault 14: a run continues with other data.

The config and the fingerprint of the data both refuse it, unless strict is off.
"""

import json

from faults.test_fault_13_another_network import run  # noqa: F401 (a fixture)
import pytest
from samples import BUDGET, examples, rows, tiny_model

from omni_jax.config import LoaderConfig
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.errors import UserError

DATA = {
  'seed': ({'seed': 1}, 'seed was 0, is 1'),
  'batch': ({'data.budget.rows': 16}, 'data.budget.rows was 8, is 16'),
  'weights': ({'data.recipes.reply': 0.5}, 'data.recipes.reply was 0.04, is 0.5'),
  'source': ({'data.voices': 1}, 'data.voices was 2, is 1'),
}


@pytest.mark.parametrize('case', DATA)
def test_fault_14_other_data_are_refused_unless_loader_strict_is_off(run, case):  # noqa: F811
  values, difference = DATA[case]
  with pytest.raises(UserError, match='of another run') as raised:
    run(values)
  message = str(raised.value)
  assert difference in message
  assert '--config.loader.strict=False allows other data' in message
  assert difference in run(values | {'loader.strict': False})


def test_fault_14_another_tokenizer_is_always_refused(run):  # noqa: F811
  with pytest.raises(UserError, match=r'model\.tokenizer\.voices was'):
    run({'model.tokenizer.voices': ('f1',), 'loader.strict': False})


def test_fault_14_the_data_have_a_fingerprint_of_their_own():
  """It finds examples that were removed, which no config shows."""
  hosts = tiny_model().hosts()

  def loader(count, **config):
    first = examples(0)[:count]
    items = [dict(example, id=str(k)) for k, example in enumerate(first)]
    maker = ExampleMaker(items, hosts, 0)
    return Loader(maker, rows(BUDGET, 2), LoaderConfig(**config), prefetch=0)

  state = loader(5).state()
  message = (
    'the data are not those of the checkpoint: examples was .*, is .*strict=False'
  )
  with pytest.raises(UserError, match=message):
    loader(4).restore(state)
  loader(4, strict=False).restore(state)
  assert json.loads(state)['of']
