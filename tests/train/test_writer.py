"""metrics.jsonl has each report once, also after a process was killed."""

import json

from etils import epath
import numpy as np

from omni_jax.train.sinks import StageLog
from omni_jax.train.writer import Writer


def new_writer(folder, stage, *, steps, start):
  """Returns a writer with the sinks that every run has."""
  log = StageLog(epath.Path(folder), stage, start, {})
  return Writer(log, ('jsonl', 'tensorboard'), steps=steps)


def lines_of(folder):
  """Returns the lines of metrics.jsonl."""
  text = (folder / 'metrics.jsonl').read_text()
  return [json.loads(line) for line in text.splitlines()]


def test_metrics_become_plain_json_and_tensorboard_gets_the_scalars(tmp_path, capsys):
  with new_writer(tmp_path, 'omni', steps=10, start=0) as writer:
    writer.write(5, {'loss/text': np.float32(0.5), 'routing/table': np.ones((2, 2))})
  (line,) = lines_of(tmp_path)
  assert line['stage'] == 'omni'
  assert line['step'] == 5
  assert line['loss/text'] == 0.5
  assert line['routing/table'] == [[1, 1], [1, 1]]
  assert line['seconds'] > 0
  assert 'omni step 5: text=0.500' in capsys.readouterr().out
  assert list((tmp_path / 'tensorboard' / 'omni').iterdir())


def test_the_log_shows_the_losses_of_every_autoencoder(tmp_path, capsys):
  with new_writer(tmp_path, 'cells', steps=10, start=0) as writer:
    writer.write(5, {'cells/loss': 0.25, 'grad_norm/total': 1.0})
  assert 'cells step 5: cells/loss=0.250\n' in capsys.readouterr().out


def test_a_restart_drops_lines_after_its_checkpoint_and_keeps_other_stages(tmp_path):
  for stage, steps in (('codec', (10, 20)), ('omni', (10, 20, 30))):
    with new_writer(tmp_path, stage, steps=30, start=0) as writer:
      for step in steps:
        writer.write(step, {'loss/total': 1.0})
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"stage": "omni", "st')
  with new_writer(tmp_path, 'omni', steps=30, start=20) as writer:
    writer.write(30, {'loss/total': 2.0})
  assert [(line['stage'], line['step']) for line in lines_of(tmp_path)] == [
    ('codec', 10),
    ('codec', 20),
    ('omni', 10),
    ('omni', 20),
    ('omni', 30),
  ]
  assert lines_of(tmp_path)[-1]['loss/total'] == 2


def test_the_time_of_earlier_processes_is_added(tmp_path):
  earlier = {'stage': 'codec', 'step': 10, 'seconds': 1000.0}
  (tmp_path / 'metrics.jsonl').write_text(json.dumps(earlier) + '\n')
  # Two stages of one process, whose own time counts once.
  for stage in ('omni', 'more'):
    with new_writer(tmp_path, stage, steps=10, start=0) as writer:
      writer.write(1, {})
  _, first, second = (line['seconds'] for line in lines_of(tmp_path))
  assert 1000 < first <= second < first + 60
