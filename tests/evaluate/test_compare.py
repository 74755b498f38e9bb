"""Tests how runs are read and compared: their configs, metrics, seeds and the page."""

import json
import re

import pytest

from omni_jax.errors import UserError
from omni_jax.evaluate import compare
from omni_jax.evaluate.page import charts
from omni_jax.evaluate.page.runs import (
  differing_keys,
  group_seeds,
  mean_and_std,
  read_run,
)


def make_run(
  folder, *, lr=1e-3, seed=0, accuracy=0.5, losses=(2.0, 1.0), evaluated=True
):
  """Writes the folder of a run with two evaluations, at steps 9 and 20."""
  (folder / 'eval' / '9').mkdir(parents=True)
  (folder / 'eval' / '20').mkdir()
  optim = {'lr': lr, 'b1': 0.9}
  config = {'seed': seed, 'omni': {'optim': optim, 'freeze': []}, 'stages': ['omni']}
  (folder / 'config.json').write_text(json.dumps(config))
  log = ''
  for k, loss in enumerate(losses, 1):
    record = {'stage': 'omni', 'step': 10 * k, 'seconds': 60.0 * k}
    record |= {'loss/text': loss, 'speed/mfu': 0.1}
    log += json.dumps(record) + '\n'
  (folder / 'metrics.jsonl').write_text(log)
  if evaluated:
    write_directions(folder, 9, 0.0)
    write_directions(folder, 20, accuracy)
  return folder


def write_directions(folder, step, accuracy):
  """Writes an evaluation of two directions, of which only one has an accuracy."""
  directions = {
    'image_to_text': {'accuracy': accuracy, 'n': 4},
    'text_to_image': {'accuracy': None},
  }
  write_metrics(folder, step, {'directions': directions})


def write_metrics(folder, step, metrics):
  path = folder / 'eval' / str(step) / 'metrics.json'
  path.write_text(json.dumps(metrics))


@pytest.fixture
def runs(tmp_path):
  """Returns the folders of two runs that differ in their seed, and of a third run."""
  return [
    make_run(tmp_path / 'a', accuracy=0.4),
    make_run(tmp_path / 'b', seed=1, accuracy=0.6, losses=(4.0, 3.0)),
    make_run(tmp_path / 'c', lr=2e-3, accuracy=0.9, losses=(1.0, 0.5, 0.25)),
  ]


def test_the_last_evaluation_and_the_last_losses_are_read(runs):
  run = read_run(runs[2])
  assert run.metrics == {
    'image_to_text': 0.9,
    'last omni: loss/text': 0.25,
    'minutes': 3.0,
  }
  assert run.curves == {'omni: loss/text': {10: 1.0, 20: 0.5, 30: 0.25}}
  assert run.config['omni.optim.lr'] == 2e-3


def test_the_loss_of_every_autoencoder_is_read(tmp_path):
  folder = make_run(tmp_path / 'a')
  log = ''
  for stage in ('codec', 'cells'):
    record = {'stage': stage, 'step': 5, 'seconds': 1.0}
    record |= {f'{stage}/loss': 0.5, f'{stage}/mel': 0.1}
    log += json.dumps(record) + '\n'
  with (folder / 'metrics.jsonl').open('a') as file:
    file.write(log)
  curves = read_run(folder).curves
  assert set(curves) == {'omni: loss/text', 'codec: codec/loss', 'cells: cells/loss'}


def test_metrics_beside_an_accuracy_and_the_routing_are_read(tmp_path):
  folder = make_run(tmp_path / 'a', evaluated=False)
  direction = {'accuracy': 0.5, 'voice_accuracy': 0.3, 'diversity': None, 'n': 4}
  routing = {'entropy': 1.7, 'mutual_information': 0.04, 'load_max': 2}
  directions = {'text_to_speech': direction}
  write_metrics(folder, 9, {'directions': directions, 'routing': routing})
  metrics = read_run(folder).metrics
  assert metrics['text_to_speech voice_accuracy'] == 0.3
  assert metrics['routing mutual_information'] == 0.04
  assert metrics['routing entropy'] == 1.7
  assert not any('load' in name or 'diversity' in name for name in metrics)


def test_scores_of_groups_of_json_lines_are_read(tmp_path):
  folder = make_run(tmp_path / 'a', evaluated=False)
  group = {
    'n': 3,
    'loss': {'text': 1.5},
    'exact_match': 0.25,
    'image_rmse': 0.2,
    'voice_accuracy': None,
  }
  data = {'groups': {'x_to_y': group}}
  write_metrics(folder, 9, {'directions': {}, 'data': data})
  metrics = read_run(folder).metrics
  assert metrics.pop('x_to_y exact_match') == 0.25
  assert metrics.pop('x_to_y loss text') == 1.5
  assert set(metrics) == {'last omni: loss/text', 'minutes'}


def test_only_differing_keys_are_columns(runs):
  configs = [read_run(folder).config for folder in runs]
  assert differing_keys(configs) == ['seed', 'omni.optim.lr']
  # A missing key counts as None.
  assert differing_keys([{'a': 1}, {'a': 1, 'b': None}, {'a': 1, 'b': 2}]) == ['b']


def test_only_runs_that_differ_in_their_seed_are_grouped(runs):
  loaded = [read_run(folder) for folder in runs]
  seeds, single = group_seeds(loaded)
  assert [run.name for run in seeds.runs] == ['a', 'b']
  assert [run.name for run in single.runs] == ['c']


def test_the_spread_is_that_of_a_sample():
  assert mean_and_std([1.0, 3.0]) == (2.0, pytest.approx(2**0.5))
  assert mean_and_std([7.0]) == (7.0, 0.0)


def test_the_page_is_self_contained_and_the_table_has_means_over_seeds(runs, tmp_path):
  text = compare.compare(runs, tmp_path / 'out' / 'page.html')
  rows = [re.split(r'\s{2,}', line) for line in text.splitlines()]
  cells = {row[0]: row[1:] for row in rows}
  assert cells['image → text'] == ['50.0\u00a0±\u00a014.1', '90.0']
  assert cells['n'] == ['2', '1']
  assert cells['omni.optim.lr'] == ['0.001', '0.002']
  page = (tmp_path / 'out' / 'page.html').read_text()
  assert 'http' not in page
  assert '<script' not in page
  assert page.count('<polyline') == 2  # one for each group
  assert page.count('<polygon') == 1  # the band of the two seeds
  assert 'Over seeds' in page
  assert 'omni.optim.lr' in page
  assert 'omni.optim.b1' not in page


def test_a_single_run_is_shown_without_seeds(runs, tmp_path):
  assert compare.compare(runs[:1], tmp_path / 'p.html').startswith('run')
  assert 'Over seeds' not in (tmp_path / 'p.html').read_text()


def test_a_band_stays_inside_its_frame():
  lines = [
    charts.Line([1e-5, 1e-3, 0.1], [5.0, 0.2, 3.0], [1.0, 0.5, 0.1]),
    charts.Line([], [], []),
  ]
  chart = charts.lines_chart('x', lines, unit='lr', log_x=True)
  for points in re.findall('points="([^"]*)"', chart):
    for point in points.split():
      x, y = map(float, point.split(','))
      assert charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
      assert charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('nowhere', 'config.json is missing'),
    ('fresh', 'no metrics yet'),
    ('damaged', 'is not JSON'),
  ],
)
def test_a_folder_without_metrics_is_refused_and_nothing_is_written(
  runs, tmp_path, name, message
):
  if name == 'fresh':
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text('{}')
  if name == 'damaged':
    folder = make_run(tmp_path / name)
    (folder / 'config.json').write_text('{')
  with pytest.raises(UserError, match=f'{name}.*{message}'):
    compare.main([str(runs[0]), str(tmp_path / name), f'--out={tmp_path}/p.html'])
  assert not (tmp_path / 'p.html').exists()


def test_a_folder_is_refused_as_the_output(runs, tmp_path):
  with pytest.raises(UserError, match='is a folder'):
    compare.main([str(runs[0]), f'--out={tmp_path}'])
