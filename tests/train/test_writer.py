"""metrics.jsonl: one line of figures a report, nothing twice after a restart, whatever a killed process left."""

import json

import numpy as np

from omni_jax.train.writer import Writer


def lines(folder):
  return [
    json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()
  ]


def test_figures_become_plain_json_and_tensorboard_gets_the_scalars(tmp_path, capsys):
  with Writer(str(tmp_path), 'omni', steps=10, start=0) as writer:
    writer.write(5, {'loss/text': np.float32(0.5), 'routing/table': np.ones((2, 2))})
  (line,) = lines(tmp_path)
  assert (line['stage'], line['step'], line['loss/text'], line['routing/table']) == (
    'omni',
    5,
    0.5,
    [[1, 1], [1, 1]],
  )
  assert line['seconds'] > 0
  assert 'omni step 5: text=0.500' in capsys.readouterr().out
  assert list((tmp_path / 'tensorboard' / 'omni').iterdir())


def test_a_restart_drops_what_came_after_its_checkpoint_and_keeps_other_stages(
  tmp_path,
):
  for stage, steps in (('codec', (10, 20)), ('omni', (10, 20, 30))):
    with Writer(str(tmp_path), stage, steps=30, start=0) as writer:
      for step in steps:
        writer.write(step, {'loss/total': 1.0})
  with (tmp_path / 'metrics.jsonl').open('a') as file:
    file.write('{"stage": "omni", "st')
  with Writer(str(tmp_path), 'omni', steps=30, start=20) as writer:
    writer.write(30, {'loss/total': 2.0})
  assert [(line['stage'], line['step']) for line in lines(tmp_path)] == [
    ('codec', 10),
    ('codec', 20),
    ('omni', 10),
    ('omni', 20),
    ('omni', 30),
  ]
  assert lines(tmp_path)[-1]['loss/total'] == 2


def test_time_goes_on_where_the_last_process_stopped(tmp_path):
  (tmp_path / 'metrics.jsonl').write_text(
    json.dumps({'stage': 'codec', 'step': 10, 'seconds': 1000.0}) + '\n'
  )
  for stage in ('omni', 'more'):  # in one process: its own time counts once
    with Writer(str(tmp_path), stage, steps=10, start=0) as writer:
      writer.write(1, {})
  first, second = (line['seconds'] for line in lines(tmp_path)[1:])
  assert 1000 < first <= second < 1000 + (first - 1000) + 60
