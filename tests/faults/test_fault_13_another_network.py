"""Fault 13: a run continues with a changed config.

Learning rate, steps and logging may change, and changes are logged; the network may not.
"""

import json

from faults.toy import state_at
import pytest
from samples import tiny_run

from omni_jax.checkpoint import changes
from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.errors import UserError
from omni_jax.train import stages


def config_of_run():
  config = tiny_run()
  config.data.budget.rows = 8
  return config


@pytest.fixture
def run(tmp_path, monkeypatch):
  """Returns a function that continues a run at step 5 of 30 of its omni stage.

  The function takes values to change in the config and returns the log; stages do
  nothing.
  """
  monkeypatch.setattr(stages, 'run_stage', lambda run, name: None)
  about = {'config': changes.plain(config_of_run())}
  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    checkpoints.save(state_at(5), b'{}', about)

  def again(values=None):
    config = config_of_run()
    for name, value in (values or {}).items():
      config.update_from_flattened_dict({name: value})
    stages.run_all(config, str(tmp_path))
    return (tmp_path / 'log.txt').read_text()

  return again


NETWORK = {
  'width': ({'model.decoder.width': 64}, 'model.decoder.width was 32, is 64'),
  'dtype': ({'model.dtype': 'bfloat16'}, "model.dtype was 'float32', is 'bfloat16'"),
  'optimizer': ({'omni.optim.kind': 'muon'}, "omni.optim.kind was 'adamw', is 'muon'"),
  'two': (
    {'model.decoder.layers': 3, 'model.image.head.noises': 1},
    'model.decoder.layers was 2, is 3; model.image.head.noises was 2, is 1',
  ),
}


@pytest.mark.parametrize('case', NETWORK)
def test_fault_13_another_network_is_refused_with_a_diff_and_nothing_is_changed(
  run, tmp_path, case
):
  values, differences = NETWORK[case]
  message = 'holds step 5 of stage .omni. of another run'
  with pytest.raises(UserError, match=message) as raised:
    run(values)
  assert f': {differences}. Use the values it was trained with' in str(raised.value)
  assert not (tmp_path / 'config.json').exists()
  assert not (tmp_path / 'log.txt').exists()
  assert 'continues after' not in run(), 'the same config is not worth a line'


def test_fault_13_rate_steps_and_logging_may_change_and_are_logged(run, tmp_path):
  values = {
    'omni.optim.lr': 0.5,
    'omni.steps': 40,
    'omni.log_every': 1,
    'model.decoder.remat': 'full',
  }
  line = (
    'omni: continues after step 5 with a changed config: '
    "model.decoder.remat was 'none', is 'full'; omni.log_every was 10, is 1; "
    'omni.optim.lr was 0.002, is 0.5; omni.steps was 30, is 40'
  )
  assert line in run(values)
  assert json.loads((tmp_path / 'config.json').read_text())['omni']['steps'] == 40
