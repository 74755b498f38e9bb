"""Metrics reach every sink, those of services in their own offline modes."""

import subprocess
import sys

from etils import epath
import pytest

from omni_jax.errors import UserError
from omni_jax.train.sinks import check_sinks, SINKS, StageLog

METRICS = {'loss/text': 0.5, 'routing/table': [[1.0, 2.0]]}
CONFIG = {'omni': {'steps': 10, 'optim': {'lr': 1e-3}}}


def write(name, folder):
  """Writes the metrics of steps 5 and 10 to a sink."""
  sink = SINKS[name](StageLog(epath.Path(folder), 'omni', 0, CONFIG))
  sink.write(5, METRICS)
  sink.write(10, METRICS | {'loss/text': 0.25})
  sink.close()


def test_mlflow_has_every_scalar_and_the_config(tmp_path, monkeypatch):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'mlruns').as_uri())
  monkeypatch.setattr(mlflow.tracking._tracking_service.utils, '_tracking_uri', None)
  write('mlflow', tmp_path / 'run')
  client = mlflow.MlflowClient()
  experiment = client.get_experiment_by_name('omni_jax')
  (run,) = client.search_runs([experiment.experiment_id])
  assert run.info.run_name == 'run/omni'
  assert run.info.status == 'FINISHED'
  assert run.data.params['omni.optim.lr'] == '0.001'
  history = client.get_metric_history(run.info.run_id, 'loss/text')
  assert [(point.step, point.value) for point in history] == [(5, 0.5), (10, 0.25)]
  assert 'routing/table' not in run.data.metrics


def test_wandb_has_every_scalar_and_the_config(tmp_path, monkeypatch):
  pytest.importorskip('wandb')
  monkeypatch.setenv('WANDB_MODE', 'offline')
  (tmp_path / 'run').mkdir()
  # In a process of its own, at whose end all is on the disk.
  subprocess.run([sys.executable, __file__, 'wandb', tmp_path / 'run'], check=True)
  (file,) = tmp_path.glob('run/wandb/offline-run-*/run-*.wandb')
  # A log of protocol buffers, in which names and values are plain text.
  data = file.read_bytes()
  assert data.count(b'loss/text') >= 2
  assert b'0.25' in data
  assert b'omni.optim.lr' in data
  assert b'routing/table' not in data


def test_an_unknown_sink_is_refused():
  with pytest.raises(UserError, match="^config.writers: 'tape' is unknown; there are"):
    check_sinks(('jsonl', 'tape'))


if __name__ == '__main__':
  write(sys.argv[1], sys.argv[2])
