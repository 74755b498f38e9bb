"""Fault 14: a run continues with other data.

The config and the fingerprint of the data both refuse it, unless strict is off.
"""

import pytest
from samples import BUDGET, examples, tiny_model, with_rows

from omni_jax.config import LoaderConfig
from omni_jax.data.example_maker import ExampleMaker
from omni_jax.data.loader import Loader
from omni_jax.errors import UserError

DATA_CHANGES = {
  'seed': ({'seed': 1}, 'seed was 0 and is now 1'),
  'batch': ({'data.budget.rows': 16}, 'data.budget.rows was 8 and is now 16'),
  'weights': (
    {'data.recipes.reply': 0.5},
    'data.recipes.reply was 0.04 and is now 0.5',
  ),
  'source': ({'data.voices': 1}, 'data.voices was 2 and is now 1'),
}


@pytest.mark.parametrize('case', DATA_CHANGES)
def test_fault_14_other_data_are_refused_unless_loader_strict_is_off(
  continue_run, case
):
  values, difference = DATA_CHANGES[case]
  with pytest.raises(UserError, match='which was saved with other values') as raised:
    continue_run(values)
  message = str(raised.value)
  assert difference in message
  assert '--config.loader.strict=False allows other data' in message
  assert difference in continue_run(values | {'loader.strict': False})


def test_fault_14_another_tokenizer_is_always_refused(continue_run):
  with pytest.raises(UserError, match=r'model\.tokenizer\.voices was'):
    continue_run({'model.tokenizer.voices': ('f1',), 'loader.strict': False})


def test_fault_14_the_fingerprint_of_the_data_shows_a_missing_example():
  """No config shows that examples were removed."""
  hosts = tiny_model().hosts()

  def loader(count, **config):
    first = examples(0)[:count]
    items = [dict(example, id=str(k)) for k, example in enumerate(first)]
    maker = ExampleMaker(items, hosts, 0)
    return Loader(maker, with_rows(BUDGET, 2), LoaderConfig(**config), prefetch=0)

  state = loader(5).state()
  message = (
    'the data do not match the checkpoint: examples was .* and is now .*strict=False'
  )
  with pytest.raises(UserError, match=message):
    loader(4).restore(state)
  loader(4, strict=False).restore(state)
