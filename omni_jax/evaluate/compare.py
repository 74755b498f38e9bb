"""Compares runs on one page and as a table of text: configs, final metrics, losses.

python -m omni_jax.evaluate.compare RUN [RUN ...] --out=page.html
"""

import argparse
from collections.abc import Mapping, Sequence
import html
import sys
from typing import Any

from etils import epath

from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.page.charts import COLORS, Line, lines_chart
from omni_jax.evaluate.page.runs import (
  differing_keys,
  FinishedRun,
  group_seeds,
  mean_and_std,
  read_run,
  SeedGroup,
)
from omni_jax.evaluate.page.template import MISSING, page, title_of
from omni_jax.paths import checked

Table = list[list[str]]  # the first row holds the names of the columns
PERCENT = ('accuracy', 'exact_match', 'wer')  # suffixes of the names of shares
NOTE = (
  'Mean ± standard deviation over runs that differ only in config.seed (n runs), in '
  'tables and curves.'
)


def run_table(runs: Sequence[FinishedRun]) -> Table:
  """Returns a row for every run: config values that differ, then final metrics."""
  keys = _keys(runs)
  names = _metric_names(runs)
  table = [['run', *keys, *map(title_of, names)]]
  for run in runs:
    table.append([run.name, *_cells(run.config, keys), *_metrics([run], names)])
  return table


def seed_table(runs: Sequence[FinishedRun]) -> Table:
  """Returns a row for every group of runs that differ only in the seed."""
  keys = _keys(runs)
  if 'seed' in keys:
    keys.remove('seed')
  names = _metric_names(runs)
  table = [['config', 'n', *keys, *map(title_of, names)]]
  for group in group_seeds(runs):
    n = str(len(group.runs))
    metrics = _metrics(group.runs, names)
    table.append([group.name, n, *_cells(group.config, keys), *metrics])
  return table


def _keys(runs: Sequence[FinishedRun]) -> list[str]:
  return differing_keys([run.config for run in runs])


def _metric_names(runs: Sequence[FinishedRun]) -> list[str]:
  """Returns the metrics that any run has, in the order of their first appearance."""
  names: dict[str, float] = {}
  for run in runs:
    names |= run.metrics
  return list(names)


def _cells(config: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
  """Returns values of a config as text."""
  cells: list[str] = []
  for key in keys:
    value = config.get(key)
    cells.append(MISSING if value is None else str(value))
  return cells


def _metrics(runs: Sequence[FinishedRun], names: Sequence[str]) -> list[str]:
  return [_metric(name, runs) for name in names]


def _metric(name: str, runs: Sequence[FinishedRun]) -> str:
  """Returns the mean of a metric as text, with its spread if several runs have it."""
  values = [run.metrics[name] for run in runs if name in run.metrics]
  if not values:
    return MISSING
  mean, spread = mean_and_std(values)
  direction_accuracy = '_to_' in name and ' ' not in name
  if direction_accuracy or name.endswith(PERCENT):
    mean_text = f'{100 * mean:.1f}'
    spread_text = f'{100 * spread:.1f}'
  else:
    mean_text = f'{mean:.3g}'
    spread_text = f'{spread:.2g}'
  if len(values) == 1:
    return mean_text
  return f'{mean_text}\u00a0±\u00a0{spread_text}'


def as_text(table: Table) -> str:
  """Returns the table as text, transposed since runs are few and metrics are many."""
  widths = [max(map(len, row)) for row in table]
  lines: list[str] = []
  for column in zip(*table, strict=True):
    cells = [cell.ljust(width) for cell, width in zip(column, widths, strict=True)]
    lines.append('  '.join(cells).rstrip())
  return '\n'.join(lines)


def _as_html(table: Table) -> str:
  rows = _html_row(table[0], 'th')
  for cells in table[1:]:
    rows += _html_row(cells, 'td')
  return f'<div class="wide"><table class="heat">{rows}</table></div>'


def _html_row(cells: Sequence[str], tag: str) -> str:
  columns = ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)
  return f'<tr>{columns}</tr>'


def _mean_line(group: SeedGroup, loss: str) -> Line:
  """Returns the mean and spread of a loss over the group's seeds.

  The line covers the steps that all runs which logged this loss have in common; it is
  empty where there are none.
  """
  curves = [run.curves[loss] for run in group.runs if loss in run.curves]
  steps = sorted(set.intersection(*map(set, curves))) if curves else []
  means: list[float] = []
  spreads: list[float] = []
  for step in steps:
    mean, spread = mean_and_std([curve[step] for curve in curves])
    means.append(mean)
    spreads.append(spread)
  return Line(steps, means, spreads)


def _loss_curves(groups: Sequence[SeedGroup]) -> str:
  losses: dict[str, dict[int, float]] = {}
  for group in groups:
    for run in group.runs:
      losses |= run.curves
  charts = ''
  for loss in losses:
    lines = [_mean_line(group, loss) for group in groups]
    if any(len(line.x) > 1 for line in lines):
      charts += lines_chart(loss, lines, unit='step')
  if not charts:
    return ''
  legend = ''
  for k, group in enumerate(groups):
    color = COLORS[k % len(COLORS)]
    legend += f'<span style="color:{color}">■ {html.escape(group.name)}</span> '
  return f'<p class="note">{legend}</p><div class="charts">{charts}</div>'


def render(runs: Sequence[FinishedRun]) -> str:
  """Returns the page as HTML."""
  groups = group_seeds(runs)
  sections = [('Runs', _as_html(run_table(runs)))]
  if len(groups) < len(runs):
    over_seeds = f'<p class="note">{NOTE}</p>{_as_html(seed_table(runs))}'
    sections.append(('Over seeds', over_seeds))
  curves = _loss_curves(groups)
  if curves:
    sections.append(('Losses', curves))
  head = (
    f'<h1>omni_jax: {len(runs)} runs compared</h1>'
    '<p class="facts">Accuracies, exact match and word error rate are in percent.</p>'
  )
  return page('omni_jax: runs compared', head, sections)


def compare(folders: Sequence[epath.PathLike], out: epath.PathLike) -> str:
  """Writes the page, and returns the table as text.

  The table is over seeds where some runs differ only in their seed.

  Args:
    folders: folders that training wrote.
    out: the page to write.

  Raises:
    UserError: if a folder holds no run or no metrics; nothing is written then.
  """
  runs = _with_unique_names([read_run(folder) for folder in folders], folders)
  text = render(runs)
  out = epath.Path(out)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(text)
  over_seeds = seed_table(runs)
  every_run = run_table(runs)
  return as_text(over_seeds if len(over_seeds) < len(every_run) else every_run)


def _with_unique_names(
  runs: Sequence[FinishedRun], folders: Sequence[epath.PathLike]
) -> list[FinishedRun]:
  """Returns the runs; those whose folders have the same name get the whole path."""
  names = [run.name for run in runs]
  renamed: list[FinishedRun] = []
  for run, folder in zip(runs, folders, strict=True):
    is_unique = names.count(run.name) == 1
    renamed.append(run if is_unique else run._replace(name=str(folder)))
  return renamed


def main(arguments: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.evaluate.compare',
    allow_abbrev=False,
    description='Compares runs: configs, final metrics, losses.',
  )
  parser.add_argument(
    'runs', nargs='+', metavar='RUN', help='folders that training wrote'
  )
  parser.add_argument(
    '--out', required=True, help='page to write, such as compare.html'
  )
  flags = parser.parse_args(arguments)
  flags.runs = [checked(run, 'RUN') for run in flags.runs]
  flags.out = checked(flags.out, '--out')
  if epath.Path(flags.out).is_dir():
    raise UserError(
      f'--out={flags.out} is a folder; give the name of a page, such as '
      f'{flags.out}/compare.html'
    )
  print(compare(flags.runs, flags.out))
  print(f'compare: wrote {flags.out}')


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
