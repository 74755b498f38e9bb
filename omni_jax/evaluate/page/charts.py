"""Curves, bars and heat tables as SVG and HTML text."""

from collections.abc import Sequence
import html
import itertools
import math
from typing import NamedTuple

import numpy as np

from omni_jax.evaluate.page.training_log import Curve

WIDTH, HEIGHT, LEFT, BOTTOM, TOP, RIGHT = 340, 190, 46, 26, 10, 10
MOST_POINTS = 300
COLORS = (
  '#1f5ea8',
  '#b8382e',
  '#1c7c4a',
  '#b07a12',
  '#7a3fa0',
  '#0f8a96',
  '#c2478f',
  '#68758a',
)  # then again


class Line(NamedTuple):
  """Points with how far they spread to both sides; a spread of zeros draws no band."""

  x: Sequence[float]
  y: Sequence[float]
  spread: Sequence[float]


def line_chart(title: str, curve: Curve) -> str:
  """One curve over minutes; the y axis is logarithmic where the values span more than a factor of ten."""
  x, y = (np.asarray(values, float) for values in curve)
  if len(x) > MOST_POINTS:
    edges = np.linspace(0, len(x), MOST_POINTS + 1).astype(int)
    x, y = (
      np.array([part[a:b].mean() for a, b in itertools.pairwise(edges)])
      for part in (x, y)
    )
  return lines_chart(
    title, [Line(x, y, np.zeros(len(y)))], unit='min', shown=f'{y[-1]:.4g}'
  )


def lines_chart(
  title: str,
  lines: Sequence[Line],
  *,
  unit: str,
  shown: str = '',
  decades: bool = False,
) -> str:
  """Several lines in one frame, each in its own colour of COLORS; an empty one only takes up its colour.

  Args:
    unit: of the x axis, which starts at 0, or, with `decades`, is logarithmic from the first point on.
    shown: beside the title.
  """
  y = np.concatenate([line.y for line in lines])
  logarithmic = y.min() > 0 and y.max() > 10 * y.min()
  scale = (
    (lambda values: np.log10(np.maximum(values, y.min())))
    if logarithmic
    else (lambda values: values)
  )
  bands = [
    (scale(np.subtract(line.y, line.spread)), scale(np.add(line.y, line.spread)))
    for line in lines
  ]
  low, high = _range(np.concatenate([edge for band in bands for edge in band]))
  xs = [np.log10(line.x) if decades else np.asarray(line.x, float) for line in lines]
  left = float(np.concatenate(xs).min()) if decades else 0.0
  right = max(left + 1e-3, float(np.concatenate(xs).max()))

  def at_x(value):
    return LEFT + (WIDTH - LEFT - RIGHT) * (value - left) / (right - left)

  def at_y(value):
    return TOP + (HEIGHT - TOP - BOTTOM) * (high - value) / (high - low)

  def points(x, y):
    return ' '.join(f'{at_x(a):.1f},{at_y(b):.1f}' for a, b in zip(x, y, strict=True))

  parts = []
  for tick in _log_ticks(low, high) if logarithmic else ticks(low, high):
    label = 10**tick if logarithmic else tick
    parts.append(
      f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at_y(tick):.1f}" y2="{at_y(tick):.1f}" class="grid"/>'
      f'<text x="{LEFT - 6}" y="{at_y(tick) + 4:.1f}" text-anchor="end">{label:.4g}</text>'
    )
  parts += [
    f'<text x="{at_x(tick):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{10**tick if decades else tick:g}</text>'
    for tick in (_log_ticks(left, right) if decades else ticks(left, right))
    if tick < left + 0.87 * (right - left)
  ]
  parts.append(
    f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 8}" text-anchor="end">{html.escape(unit)}</text>'
  )
  for k, (line, x, (under, over)) in enumerate(zip(lines, xs, bands, strict=True)):
    if not len(x):
      continue
    color = COLORS[k % len(COLORS)]
    if np.any(line.spread):
      edge = points(np.concatenate([x, x[::-1]]), np.concatenate([over, under[::-1]]))
      parts.append(f'<polygon points="{edge}" fill="{color}" opacity="0.18"/>')
    parts.append(
      f'<polyline points="{points(x, scale(np.asarray(line.y)))}" class="line" style="stroke:{color}"/>'
    )
  return (
    f'<figure class="chart"><figcaption>{html.escape(title)} <b>{shown}</b></figcaption>'
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}'
    '</svg></figure>'
  )


def ticks(low: float, high: float, count: int = 5) -> list[float]:
  """At most about `count` round numbers from low to high."""
  rough = (high - low) / count
  unit = 10 ** math.floor(math.log10(rough))
  step = next(
    unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999
  )
  first = math.ceil(low / step - 1e-9)
  return [round(k * step, 12) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  decades = range(math.floor(low), math.ceil(high) + 1)
  factors = (1,) if high - low > 2.5 else (1, 3)
  found = (decade + math.log10(factor) for decade in decades for factor in factors)
  return [tick for tick in found if low <= tick <= high]


def _range(values: np.ndarray) -> tuple[float, float]:
  low, high = float(values.min()), float(values.max())
  margin = 0.05 * (high - low) or 0.5
  return low - margin, high + margin


def bar(value: float | None, target: float | None) -> str:
  """A share as a bar from 0 to 1 with a mark at the target."""
  filled = 0 if value is None else 100 * min(max(value, 0), 1)
  kind = (
    ''
    if target is None
    else 'ok'
    if value is not None and value >= target - 1e-9
    else 'bad'
  )
  mark = '' if target is None else f'<i style="left:{100 * min(target, 1):.1f}%"></i>'
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
  """Numbers on a background as dark as their share of the row; zeros stay blank."""
  head = ''.join(f'<th>{html.escape(name)}</th>' for name in columns)
  body = []
  for name, row in zip(rows, table, strict=True):
    most = max(max(row), 1e-9) if percent else max(sum(row), 1e-9)
    cells = ''.join(_cell(value, value / most, percent) for value in row)
    body.append(f'<tr><th>{html.escape(name)}</th>{cells}</tr>')
  return f'<table class="heat"><tr><th>{html.escape(corner)}</th>{head}</tr>{"".join(body)}</table>'


def _cell(value: float, depth: float, percent: bool) -> str:
  text = '' if not value else f'{100 * value:.0f}' if percent else f'{value:g}'
  color = '#fff' if depth > 0.5 else 'inherit'
  return f'<td style="background:rgba(31,94,168,{depth:.2f});color:{color}">{text}</td>'
