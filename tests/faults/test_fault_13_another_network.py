"""Fault 13: a run continues with a changed config.

Learning rate, steps and logging may change, and changes are logged; the network may not.
"""

import json

import pytest

from omni_jax.errors import UserError

NETWORK_CHANGES = {
  'width': ({'model.decoder.width': 64}, 'model.decoder.width was 32 and is now 64'),
  'dtype': (
    {'model.dtype': 'bfloat16'},
    "model.dtype was 'float32' and is now 'bfloat16'",
  ),
  'optimizer': (
    {'omni.optim.kind': 'muon'},
    "omni.optim.kind was 'adamw' and is now 'muon'",
  ),
  'two': (
    {'model.decoder.layers': 3, 'model.image.head.noises': 1},
    'model.decoder.layers was 2 and is now 3; model.image.head.noises was 2 and is now 1',
  ),
}


@pytest.mark.parametrize('case', NETWORK_CHANGES)
def test_fault_13_another_network_is_refused_with_a_diff_and_nothing_is_changed(
  continue_run, tmp_path, case
):
  values, differences = NETWORK_CHANGES[case]
  message = 'cannot continue from step 5 of stage omni, which was saved with'
  with pytest.raises(UserError, match=message) as raised:
    continue_run(values)
  assert f': {differences}. Use the values it was saved with' in str(raised.value)
  assert not (tmp_path / 'config.json').exists()
  assert not (tmp_path / 'log.txt').exists()
  assert 'continues after' not in continue_run(), 'an unchanged config logs nothing'


def test_fault_13_rate_steps_and_logging_may_change_and_are_logged(
  continue_run, tmp_path
):
  values = {
    'omni.optim.lr': 0.5,
    'omni.steps': 40,
    'omni.log_every': 1,
    'model.decoder.remat': 'full',
  }
  line = (
    'omni: continues after step 5 with a changed config: '
    "model.decoder.remat was 'none' and is now 'full'; omni.log_every was 10 and is now 1; "
    'omni.optim.lr was 0.002 and is now 0.5; omni.steps was 30 and is now 40'
  )
  assert line in continue_run(values)
  assert json.loads((tmp_path / 'config.json').read_text())['omni']['steps'] == 40
