"""Runs side by side: what differs, figures over seeds, one page without network, one line for a folder without metrics."""

import json
import re

import pytest

from omni_jax.errors import UserError
from omni_jax.evaluate import compare
from omni_jax.evaluate.page import charts
from omni_jax.evaluate.page.runs import differing, groups_of, mean_and_spread, read_run


def make_run(
  folder, *, lr=1e-3, seed=0, accuracy=0.5, losses=(2.0, 1.0), evaluated=True
):
  (folder / 'eval' / '9').mkdir(parents=True)
  (folder / 'eval' / '20').mkdir()
  config = {
    'seed': seed,
    'omni': {'optim': {'lr': lr, 'b1': 0.9}, 'freeze': []},
    'stages': ['omni'],
  }
  (folder / 'config.json').write_text(json.dumps(config))
  lines = [
    {
      'stage': 'omni',
      'step': 10 * (k + 1),
      'seconds': 60.0 * (k + 1),
      'loss/text': loss,
      'speed/mfu': 0.1,
    }
    for k, loss in enumerate(losses)
  ]
  (folder / 'metrics.jsonl').write_text(
    ''.join(json.dumps(line) + '\n' for line in lines)
  )
  if evaluated:
    for step, value in ((9, 0.0), (20, accuracy)):
      metrics = {
        'directions': {
          'image_to_text': {'accuracy': value, 'n': 4},
          'text_to_image': {'accuracy': None},
        }
      }
      (folder / 'eval' / str(step) / 'metrics.json').write_text(json.dumps(metrics))
  return folder


@pytest.fixture
def runs(tmp_path):
  return [
    make_run(tmp_path / 'a', accuracy=0.4),
    make_run(tmp_path / 'b', seed=1, accuracy=0.6, losses=(4.0, 3.0)),
    make_run(tmp_path / 'c', lr=2e-3, accuracy=0.9, losses=(1.0, 0.5, 0.25)),
  ]


def test_the_last_evaluation_and_the_last_losses_are_read(runs):
  run = read_run(runs[2])
  assert run.figures == {
    'image_to_text': 0.9,
    'last omni: loss/text': 0.25,
    'minutes': 3.0,
  }
  assert (
    run.curves == {'omni: loss/text': {10: 1.0, 20: 0.5, 30: 0.25}}
    and run.config['omni.optim.lr'] == 2e-3
  )


def test_what_stands_beside_an_accuracy_and_the_routing_are_read(tmp_path):
  folder = make_run(tmp_path / 'a', evaluated=False)
  direction = {'accuracy': 0.5, 'voice_accuracy': 0.3, 'diversity': None, 'n': 4}
  metrics = {
    'directions': {'text_to_speech': direction},
    'routing': {'entropy': 1.7, 'mutual_information': 0.04, 'load_max': 2},
  }
  (folder / 'eval' / '9' / 'metrics.json').write_text(json.dumps(metrics))
  figures = read_run(folder).figures
  assert (
    figures['text_to_speech voice_accuracy'] == 0.3
    and figures['routing mutual_information'] == 0.04
  )
  assert figures['routing entropy'] == 1.7 and not any(
    'load' in name or 'diversity' in name for name in figures
  )


def test_scores_of_json_lines_are_read(tmp_path):
  folder = make_run(tmp_path / 'a', evaluated=False)
  group = {
    'n': 3,
    'loss': {'text': 1.5},
    'exact_match': 0.25,
    'image_rmse': 0.2,
    'voice_accuracy': None,
  }
  (folder / 'eval' / '9' / 'metrics.json').write_text(
    json.dumps({'directions': {}, 'data': {'groups': {'x_to_y': group}}})
  )
  figures = read_run(folder).figures
  assert (
    figures.pop('x_to_y exact_match') == 0.25 and figures.pop('x_to_y loss text') == 1.5
  )
  assert set(figures) == {'last omni: loss/text', 'minutes'}


def test_only_what_differs_is_a_column_and_only_seeds_are_taken_together(runs):
  found = [read_run(folder) for folder in runs]
  assert differing([run.config for run in found]) == ['seed', 'omni.optim.lr']
  assert differing([{'a': 1}, {'a': 1, 'b': None}, {'a': 1, 'b': 2}]) == ['b']
  assert [[run.name for run in group.runs] for group in groups_of(found)] == [
    ['a', 'b'],
    ['c'],
  ]


def test_the_spread_is_that_of_a_sample():
  assert mean_and_spread([1.0, 3.0]) == (
    2.0,
    pytest.approx(2**0.5),
  ) and mean_and_spread([7.0]) == (7.0, 0.0)


def test_the_page_needs_nothing_and_the_table_has_means_over_seeds(runs, tmp_path):
  text = compare.compare(runs, tmp_path / 'out' / 'page.html')
  lines = {line.split('  ')[0]: line for line in text.splitlines()}
  assert re.split(r'\s{2,}', lines['image → text']) == [
    'image → text',
    '50.0\u00a0±\u00a014.1',
    '90.0',
  ]
  assert re.split(r'\s{2,}', lines['n']) == ['n', '2', '1'] and re.split(
    r'\s{2,}', lines['omni.optim.lr']
  ) == ['omni.optim.lr', '0.001', '0.002']
  page = (tmp_path / 'out' / 'page.html').read_text()
  assert 'http' not in page and '<script' not in page
  assert (
    page.count('<polyline') == 2
    and page.count('<polygon') == 1
    and 'Over seeds' in page
  )
  assert 'omni.optim.lr' in page and 'omni.optim.b1' not in page


def test_a_single_run_is_shown_without_seeds(runs, tmp_path):
  assert compare.compare(runs[:1], tmp_path / 'p.html').startswith('run')
  assert 'Over seeds' not in (tmp_path / 'p.html').read_text()


def test_a_band_stays_inside_its_frame():
  lines = [
    charts.Line([1e-5, 1e-3, 0.1], [5.0, 0.2, 3.0], [1.0, 0.5, 0.1]),
    charts.Line([], [], []),
  ]
  chart = charts.lines_chart('x', lines, unit='lr', decades=True)
  for points in re.findall('points="([^"]*)"', chart):
    for x, y in (map(float, point.split(',')) for point in points.split()):
      assert (
        charts.LEFT <= x <= charts.WIDTH - charts.RIGHT
        and charts.TOP <= y <= charts.HEIGHT - charts.BOTTOM
      )


@pytest.mark.parametrize(
  ('name', 'said'),
  [
    ('nowhere', 'config.json is missing'),
    ('fresh', 'no metrics yet'),
    ('torn', 'is not JSON'),
  ],
)
def test_a_folder_without_metrics_is_one_line_and_writes_nothing(
  runs, tmp_path, name, said
):
  if name == 'fresh':
    (tmp_path / name).mkdir()
    (tmp_path / name / 'config.json').write_text('{}')
  if name == 'torn':
    (make_run(tmp_path / name) / 'config.json').write_text('{')
  with pytest.raises(UserError, match=f'{name}.*{said}'):
    compare.main([str(runs[0]), str(tmp_path / name), f'--out={tmp_path}/p.html'])
  assert not (tmp_path / 'p.html').exists()
  with pytest.raises(UserError, match='is a folder'):
    compare.main([str(runs[0]), f'--out={tmp_path}'])
