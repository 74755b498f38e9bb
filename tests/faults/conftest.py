"""Provides the fixtures that several fault tests share."""

from faults.toy import save_steps, state_at
import pytest
from samples import tiny_run

from omni_jax.checkpoint import changes
from omni_jax.checkpoint.checkpoints import Checkpoints
from omni_jax.train import stages


@pytest.fixture(scope='session')
def two_steps(tmp_path_factory):
  """Returns a folder with steps 1 and 2 of the toy stage; tests damage copies of it."""
  return save_steps(tmp_path_factory.mktemp('saved'), 1, 2)


def run_config():
  """Returns the config of a run with a batch of eight rows."""
  config = tiny_run()
  config.data.budget.rows = 8
  return config


@pytest.fixture
def continue_run(tmp_path, monkeypatch):
  """Returns a function that continues a run at step 5 of 30 of its omni stage.

  The function takes values to change in the config and returns the log; stages do
  nothing.
  """
  monkeypatch.setattr(stages, 'run_stage', lambda run, name: None)
  about = {'config': changes.plain(run_config())}
  with Checkpoints(str(tmp_path), 'omni') as checkpoints:
    checkpoints.save(state_at(5), b'{}', about)

  def resume(values=None):
    config = run_config()
    for name, value in (values or {}).items():
      config.update_from_flattened_dict({name: value})
    stages.run_all(config, str(tmp_path))
    return (tmp_path / 'log.txt').read_text()

  return resume
