"""Fault 13: a run goes on with a changed config: rate, steps and logging may change and are logged; the network may not."""

import json

import pytest
from samples import tiny_run

from omni_jax.checkpoint import changes
from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.errors import UserError
from omni_jax.train import stages


@pytest.fixture
def run(tmp_path, monkeypatch):
  """A function that starts a run whose folder holds step 5 of 30 of the omni stage by the config of tests; stages do nothing."""
  monkeypatch.setattr(stages, 'run_stage', lambda run, name: None)
  started = tiny_run()
  started.data.budget.rows = 8
  from faults.toy import states

  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    checkpoints.save(states(5)[0], b'{}', {'config': changes.plain(started)})

  def again(values=None, steps=None):
    config = tiny_run()
    config.data.budget.rows = 8
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
def test_fault_13_another_network_is_refused_with_a_diff_and_nothing_is_touched(
  run, tmp_path, case
):
  values, said = NETWORK[case]
  with pytest.raises(
    UserError, match='holds step 5 of stage .omni. of another run'
  ) as raised:
    run(values)
  assert f': {said}. Give the values it was trained with' in str(raised.value)
  assert not (tmp_path / 'config.json').exists() and not (tmp_path / 'log.txt').exists()
  assert 'goes on' not in run(), 'the same config is nothing to speak of'


def test_fault_13_rate_steps_and_logging_may_change_and_are_logged(run, tmp_path):
  said = run(
    {
      'omni.optim.lr': 0.5,
      'omni.steps': 40,
      'omni.log_every': 1,
      'model.decoder.remat': 'full',
    }
  )
  assert (
    "omni: goes on after step 5 with another config: model.decoder.remat was 'none', is 'full'; omni.log_every was 10, is 1; "
    'omni.optim.lr was 0.002, is 0.5; omni.steps was 30, is 40'
  ) in said
  assert json.loads((tmp_path / 'config.json').read_text())['omni']['steps'] == 40
