"""python -m omni_jax.evaluate.compare RUN [RUN ...] --out=page.html: runs on one page, and their table as text."""

import argparse
from collections.abc import Sequence
import html
import sys
from typing import Any

from etils import epath

from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.page.charts import COLORS, Line, lines_chart
from omni_jax.evaluate.page.page import page
from omni_jax.evaluate.page.runs import (
  differing,
  Group,
  groups_of,
  mean_and_spread,
  read_run,
  Run,
)

Table = list[list[str]]  # the first row holds the names of the columns
NOTE = 'Mean ± standard deviation over runs that differ only in config.seed (n of them), in the curves as well.'


def tables(runs: Sequence[Run]) -> tuple[Table, Table]:
  """Every run, and every group of seeds: config values that differ, then the final figures."""
  groups = groups_of(runs)
  figures = list(dict.fromkeys(name for run in runs for name in run.figures))
  keys = differing([run.config for run in runs])
  every = [['run', *keys, *map(_title, figures)]]
  every += [
    [
      run.name,
      *(_cell(run.config.get(key)) for key in keys),
      *(_figure(name, [run]) for name in figures),
    ]
    for run in runs
  ]
  keys = [key for key in keys if key != 'seed']
  seeds = [['config', 'n', *keys, *map(_title, figures)]]
  seeds += [
    [
      group.name,
      str(len(group.runs)),
      *(_cell(group.config.get(key)) for key in keys),
      *(_figure(name, group.runs) for name in figures),
    ]
    for group in groups
  ]
  return every, seeds


def _title(figure: str) -> str:
  return figure.replace('_to_', ' → ').replace('_', ' ')


def _cell(value: Any) -> str:
  return '–' if value is None else str(value)


def _figure(name: str, runs: Sequence[Run]) -> str:
  values = [run.figures[name] for run in runs if name in run.figures]
  if not values:
    return '–'
  mean, spread = mean_and_spread(values)
  percent = ('_to_' in name and ' ' not in name) or name.endswith(
    ('accuracy', 'exact_match', 'wer')
  )
  shown, around = (
    (f'{100 * mean:.1f}', f'{100 * spread:.1f}')
    if percent
    else (f'{mean:.3g}', f'{spread:.2g}')
  )
  return f'{shown}\u00a0±\u00a0{around}' if len(values) > 1 else shown


def as_text(table: Table) -> str:
  """Turned over, since runs are few and figures many: a line for every column of the table."""
  turned = list(zip(*table, strict=True))
  widths = [max(len(line[k]) for line in turned) for k in range(len(table))]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) for cell, width in zip(line, widths, strict=True)
    ).rstrip()
    for line in turned
  )


def _as_html(table: Table) -> str:
  def row(cells, tag):
    return (
      '<tr>'
      + ''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)
      + '</tr>'
    )

  rows = row(table[0], 'th') + ''.join(row(cells, 'td') for cells in table[1:])
  return f'<div class="wide"><table class="heat">{rows}</table></div>'


def _mean_line(group: Group, loss: str) -> Line | None:
  """Mean and spread over the group's seeds, at the steps that all that logged this loss have."""
  curves = [run.curves[loss] for run in group.runs if loss in run.curves]
  steps = sorted(set.intersection(*map(set, curves))) if curves else []
  if not steps:
    return None
  means, spreads = zip(
    *(mean_and_spread([curve[step] for curve in curves]) for step in steps), strict=True
  )
  return Line(steps, means, spreads)


def _loss_curves(groups: Sequence[Group]) -> str:
  charts = []
  for loss in dict.fromkeys(
    name for group in groups for run in group.runs for name in run.curves
  ):
    lines = [_mean_line(group, loss) or Line([], [], []) for group in groups]
    if any(len(line.x) > 1 for line in lines):
      charts.append(lines_chart(loss, lines, unit='step'))
  names = ''.join(
    f'<span style="color:{COLORS[k % len(COLORS)]}">■ {html.escape(group.name)}</span> '
    for k, group in enumerate(groups)
  )
  return (
    f'<p class="note">{names}</p><div class="charts">{"".join(charts)}</div>'
    if charts
    else ''
  )


def render(runs: Sequence[Run]) -> str:
  """The page."""
  every, seeds = tables(runs)
  groups = groups_of(runs)
  sections = [('Runs', _as_html(every)), ('Losses', _loss_curves(groups))]
  if len(groups) < len(runs):
    sections.insert(1, ('Over seeds', f'<p class="note">{NOTE}</p>{_as_html(seeds)}'))
  head = f'<h1>omni_jax: {len(runs)} runs compared</h1><p class="facts">Accuracies in percent.</p>'
  return page(
    'omni_jax: runs compared', head, [(name, body) for name, body in sections if body]
  )


def compare(folders: Sequence[Any], out: Any) -> str:
  """Writes the page and returns the table as text: over seeds, where some runs differ in nothing else.

  Raises:
    UserError: if a folder holds no run or no metrics; nothing is written then.
  """
  runs = _named_apart([read_run(folder) for folder in folders], folders)
  text = render(runs)
  out = epath.Path(out)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(text)
  every, seeds = tables(runs)
  return as_text(seeds if len(seeds) < len(every) else every)


def _named_apart(runs: list[Run], folders: Sequence[Any]) -> list[Run]:
  """Folders of the same name are shown with their whole path."""
  names = [run.name for run in runs]
  return [
    run._replace(name=str(folder)) if names.count(run.name) > 1 else run
    for run, folder in zip(runs, folders, strict=True)
  ]


def main(arguments: Sequence[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m omni_jax.evaluate.compare',
    allow_abbrev=False,
    description='Compares runs: configs, final figures, losses.',
  )
  parser.add_argument(
    'runs', nargs='+', metavar='RUN', help='folders that training wrote'
  )
  parser.add_argument(
    '--out', required=True, help='page to write, such as compare.html'
  )
  flags = parser.parse_args(arguments)
  if epath.Path(flags.out).is_dir():
    raise UserError(
      f'--out={flags.out} is a folder; give the name of a page, such as {flags.out}/compare.html'
    )
  print(compare(flags.runs, flags.out))
  print(f'compare: wrote {flags.out}')


if __name__ == '__main__':
  run_command(lambda: main(sys.argv[1:]))
