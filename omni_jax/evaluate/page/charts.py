"""Draws curves, bars and heat tables as SVG and HTML text."""

from collections.abc import Sequence
import html
import itertools
import math
from typing import NamedTuple

import numpy as np

from omni_jax.evaluate.page.training_log import Curve

# Sizes in units of the view box; the four margins surround the plot.
WIDTH = 340
HEIGHT = 190
LEFT = 46
BOTTOM = 26
TOP = 10
RIGHT = 10
MAX_POINTS = 300  # most points of a curve over time
# The colours of lines in their order; they repeat after the last one.
COLORS = (
  '#1f5ea8',
  '#b8382e',
  '#1c7c4a',
  '#b07a12',
  '#7a3fa0',
  '#0f8a96',
  '#c2478f',
  '#68758a',
)
DARK = 0.5  # depth of a cell's colour above which its text is white


class Line(NamedTuple):
  """Points, and their spread to both sides; a spread of zeros draws no band."""

  x: Sequence[float] | np.ndarray
  y: Sequence[float] | np.ndarray
  spread: Sequence[float] | np.ndarray


class _Plot(NamedTuple):
  """The ranges of both axes, logarithms (base 10) where an axis is logarithmic."""

  left: float
  right: float
  low: float
  high: float

  def x(self, values: np.ndarray | float) -> np.ndarray | float:
    width = WIDTH - LEFT - RIGHT
    return LEFT + width * (values - self.left) / (self.right - self.left)

  def y(self, values: np.ndarray | float) -> np.ndarray | float:
    height = HEIGHT - TOP - BOTTOM
    return TOP + height * (self.high - values) / (self.high - self.low)

  def points(self, xs: np.ndarray, ys: np.ndarray) -> str:
    pairs = zip(np.asarray(self.x(xs)), np.asarray(self.y(ys)), strict=True)
    return ' '.join(f'{x:.1f},{y:.1f}' for x, y in pairs)


def curve_chart(title: str, curve: Curve) -> str:
  """Returns one curve over minutes, with its last value beside the title.

  Long curves are averaged down to MAX_POINTS points.
  """
  x = np.asarray(curve.minutes, float)
  y = np.asarray(curve.values, float)
  if len(x) > MAX_POINTS:
    edges = np.linspace(0, len(x), MAX_POINTS + 1).astype(int)
    x = _means(x, edges)
    y = _means(y, edges)
  line = Line(x, y, np.zeros(len(y)))
  return lines_chart(title, [line], unit='min', label=f'{y[-1]:.4g}')


def _means(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """Returns the mean of the values between each edge and the next."""
  return np.array([values[a:b].mean() for a, b in itertools.pairwise(edges)])


def lines_chart(
  title: str, lines: Sequence[Line], *, unit: str, label: str = '', log_x: bool = False
) -> str:
  """Returns several lines in one plot, each in its own colour of COLORS.

  An empty line draws nothing, but uses up its colour. The y axis is logarithmic if all
  values are positive and span more than a factor of ten.

  Args:
    title: text above the plot.
    lines: the lines; at least one has points.
    unit: unit of the x axis.
    label: text beside the title.
    log_x: whether the x axis is logarithmic, from the first point on; else it starts
      at 0.
  """
  y = np.concatenate([line.y for line in lines])
  logarithmic = bool(y.min() > 0 and y.max() > 10 * y.min())
  floor = float(y.min()) if logarithmic else None
  lower = [_to_scale(np.subtract(line.y, line.spread), floor) for line in lines]
  upper = [_to_scale(np.add(line.y, line.spread), floor) for line in lines]
  low, high = _range(np.concatenate([*lower, *upper]))
  xs = [np.log10(line.x) if log_x else np.asarray(line.x, float) for line in lines]
  all_x = np.concatenate(xs)
  left = float(all_x.min()) if log_x else 0.0
  right = max(left + 1e-3, float(all_x.max()))
  plot = _Plot(left, right, low, high)
  parts = [_y_axis(plot, logarithmic), _x_axis(plot, unit, log_x)]
  for k, line in enumerate(lines):
    if not len(line.x):
      continue
    color = COLORS[k % len(COLORS)]
    if np.any(line.spread):
      parts.append(_band(plot, xs[k], lower[k], upper[k], color))
    points = plot.points(xs[k], _to_scale(np.asarray(line.y), floor))
    parts.append(f'<polyline points="{points}" class="line" style="stroke:{color}"/>')
  name = html.escape(title)
  return (
    f'<figure class="chart"><figcaption>{name} <b>{label}</b></figcaption>'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{name}">'
    f'{"".join(parts)}</svg></figure>'
  )


def _to_scale(values: np.ndarray, floor: float | None) -> np.ndarray:
  """Returns the base-10 logarithms of values, raised to `floor`; if None, the values."""
  if floor is None:
    return values
  return np.log10(np.maximum(values, floor))


def _y_axis(plot: _Plot, logarithmic: bool) -> str:
  parts = ''
  for tick in _ticks(plot.low, plot.high, logarithmic):
    value = 10**tick if logarithmic else tick
    y = plot.y(tick)
    parts += (
      f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="grid"/>'
      f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>'
    )
  return parts


def _x_axis(plot: _Plot, unit: str, log_x: bool) -> str:
  """Returns the numbers of the x axis and, at its right end, its unit."""
  parts = ''
  for tick in _ticks(plot.left, plot.right, log_x):
    if tick < plot.left + 0.87 * (plot.right - plot.left):  # leaves room for the unit
      value = 10**tick if log_x else tick
      parts += (
        f'<text x="{plot.x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">'
        f'{value:g}</text>'
      )
  return (
    f'{parts}<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">'
    f'{html.escape(unit)}</text>'
  )


def _band(
  plot: _Plot, x: np.ndarray, lower: np.ndarray, upper: np.ndarray, color: str
) -> str:
  outline_x = np.concatenate([x, x[::-1]])
  outline_y = np.concatenate([upper, lower[::-1]])
  points = plot.points(outline_x, outline_y)
  return f'<polygon points="{points}" fill="{color}" opacity="0.18"/>'


def _ticks(low: float, high: float, logarithmic: bool) -> list[float]:
  return _log_ticks(low, high) if logarithmic else ticks(low, high)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """Returns round numbers from low to high, at most about `count`."""
  rough = (high - low) / count
  unit = 10 ** math.floor(math.log10(rough))
  steps = (unit * factor for factor in (1, 2, 5, 10))
  step = next(step for step in steps if step >= rough * 0.999)
  first = math.ceil(low / step - 1e-9)
  last = math.floor(high / step + 1e-9)
  return [round(k * step, 12) for k in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  """Returns logarithms of powers of ten, and in a small range also of three times them."""
  factors = (1,) if high - low > 2.5 else (1, 3)
  log_ticks: list[float] = []
  for decade in range(math.floor(low), math.ceil(high) + 1):
    for factor in factors:
      tick = decade + math.log10(factor)
      if low <= tick <= high:
        log_ticks.append(tick)
  return log_ticks


def _range(values: np.ndarray) -> tuple[float, float]:
  """Returns the lowest and the highest value, with a margin of 5 %."""
  low = float(values.min())
  high = float(values.max())
  margin = 0.05 * (high - low) or 0.5
  return low - margin, high + margin


def bar(value: float | None, target: float, passed: bool) -> str:
  """Returns a share as a bar from 0 to 1 with a mark at the target."""
  filled = 0 if value is None else 100 * min(max(value, 0), 1)
  kind = 'ok' if passed else 'bad'
  mark = f'<i style="left:{100 * min(target, 1):.1f}%"></i>'
  return (
    f'<div class="bar {kind}"><span style="width:{filled:.1f}%"></span>{mark}</div>'
  )


def heat_table(
  table: Sequence[Sequence[float]],
  rows: Sequence[str],
  columns: Sequence[str],
  *,
  corner: str = '',
  percent: bool = False,
) -> str:
  """Returns a table of numbers on a background as dark as their share of the row.

  Args:
    table: the numbers, row by row; zeros stay blank.
    rows: names of the rows.
    columns: names of the columns.
    corner: text above the names of the rows.
    percent: whether the numbers are shares, shown in percent; they are then shaded
      relative to the largest of their row instead of its sum.
  """
  head = ''.join(f'<th>{html.escape(name)}</th>' for name in columns)
  body = ''
  for name, row in zip(rows, table, strict=True):
    full = max(row) if percent else sum(row)
    cells = ''.join(_cell(value, value / max(full, 1e-9), percent) for value in row)
    body += f'<tr><th>{html.escape(name)}</th>{cells}</tr>'
  return (
    f'<table class="heat"><tr><th>{html.escape(corner)}</th>{head}</tr>{body}</table>'
  )


def _cell(value: float, depth: float, percent: bool) -> str:
  text = ''
  if value:
    text = f'{100 * value:.0f}' if percent else f'{value:g}'
  color = '#fff' if depth > DARK else 'inherit'
  background = f'rgba(31,94,168,{depth:.2f})'
  return f'<td style="background:{background};color:{color}">{text}</td>'
