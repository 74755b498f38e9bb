"""python -m omni_jax.inspect_data --config=F --out=page.html [--rows=4 --batch=0]

Writes one HTML page that shows a batch as the model receives it: every row with its
spans, modalities, positions, attention mask and the positions that have a loss, its
pictures, and its sounds to see and play. Look here first when training goes wrong.
"""

from collections.abc import Iterator
import html
from typing import Any, NamedTuple

from absl import flags
from etils import epath
from ml_collections import config_flags
import numpy as np

from omni_jax.command_line import CONFIG_HELP
from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.page.charts import Line, lines_chart
from omni_jax.evaluate.page.page_media import Media
from omni_jax.evaluate.page.template import page
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.paths import checked
from omni_jax.train.stages import omni_batches, Run
from omni_jax.types import Batch, medium_and_kind, NONE, PADDING

_FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file(
  'config', help_string=CONFIG_HELP, lock_config=True, flag_values=_FLAGS
)
flags.DEFINE_string('out', '', 'HTML file to write', flag_values=_FLAGS)
flags.DEFINE_integer(
  'rows', 4, 'number of rows to show', lower_bound=1, flag_values=_FLAGS
)
flags.DEFINE_integer(
  'batch', 0, 'number of the batch to show, from 0', lower_bound=0, flag_values=_FLAGS
)

COLORS = ('#e2e7ee', '#1f5ea8', '#1c7c4a', '#b07a12', '#8a3ea8', '#a83e3e')
QUERIES = 'queries'  # kind of a stretch of learned queries
# Sizes of a row's strip in units of its SVG.
WIDTH = 1040
CELL_HEIGHT = 16
CELL_GAP = 0.3  # before a cell
EXAMPLE_GAP = 1.5  # before the first cell of an example
MARKS_TOP = 19  # top of the first line of loss marks
MARK_HEIGHT = 4
LINE_HEIGHT = 5  # distance between the lines of loss marks


class Stretch(NamedTuple):
  """Neighbouring positions of one example that carry the same thing.

  Attributes:
    start: first position.
    stop: position after the last one.
    kind: 'text', 'queries' or the name of a stream.
    item: number of the stream's item in the row, from 1; 0 for text.
  """

  start: int
  stop: int
  kind: str
  item: int


def color_of(number: int) -> str:
  """Returns the color of the modality with this number."""
  return COLORS[number % len(COLORS)]


def stretches_of(batch: Batch, row: int) -> list[Stretch]:
  """Returns the stretches of a row from left to right, without its padding."""
  segment_L = batch.segment_BL[row]
  length = int((segment_L > 0).sum())
  kinds = [TEXT] * length
  items = np.zeros(length, int)
  for name, stream in batch.streams.items():
    pool, _ = pool_of(batch, name, row)
    maps = [(name, stream.at_BL)]
    if stream.query_at_BL is not None:
      maps.append((QUERIES, stream.query_at_BL))
    for kind, map_BL in maps:
      piece_L = map_BL[row, :length]
      for position in np.flatnonzero(piece_L != NONE).tolist():
        kinds[position] = kind
        items[position] = stream.item_BM[pool, piece_L[position]]
  stretches: list[Stretch] = []
  for position in range(length):
    kind = kinds[position]
    item = int(items[position])
    last = stretches[-1] if stretches else Stretch(0, 0, '', NONE)
    same = (last.kind, last.item) == (kind, item)
    if same and segment_L[position] == segment_L[position - 1]:
      stretches[-1] = last._replace(stop=position + 1)
    else:
      stretches.append(Stretch(position, position + 1, kind, item))
  return stretches


def pool_of(batch: Batch, stream: str, row: int) -> tuple[int, int]:
  """Returns a row's pool of a stream, and the row's number within that pool's group."""
  pools = len(batch.streams[stream].item_BM)
  group = len(batch.token_BL) // max(1, pools)
  return divmod(row, group)


def loss_masks(batch: Batch, row: int, hosts: Hosts) -> dict[str, np.ndarray]:
  """Returns a bool array (L,) by head: True at the positions that have its loss."""
  losses = {TEXT: batch.weight_BL[row] > 0}
  length = batch.token_BL.shape[1]
  for spec in hosts.streams:
    if not spec.written:
      continue
    pool, number = pool_of(batch, spec.name, row)
    at_M = batch.streams[spec.name].write_at_BM[pool]
    # Positions of a pool count on from row to row of its group.
    own_M = at_M[(at_M != NONE) & (at_M // length == number)]
    has_loss = np.zeros(length, bool)
    has_loss[own_M % length] = True
    losses[spec.medium] = has_loss
  return losses


def words_of(batch: Batch, row: int, stretch: Stretch, tokenizer: Tokenizer) -> str:
  """Returns the text of a stretch, with special tokens as their names in <>."""
  words = ''
  plain: list[int] = []  # decoded together: a character may take several tokens
  for token in batch.token_BL[row, stretch.start : stretch.stop].tolist():
    name = tokenizer.name(token)
    if name is None:
      plain.append(token)
      continue
    words += tokenizer.decode(tuple(plain))
    plain = []
    if name != 'pad':
      words += f'<{name}>'
  return words + tokenizer.decode(tuple(plain))


def render(batch: Batch, hosts: Hosts, *, rows: int, title: str) -> str:
  """Returns the HTML page of a batch.

  Args:
    rows: number of rows to show, at most.
    title: title of the page, as plain text.
  """
  batch_rows, length = batch.token_BL.shape
  filled = (batch.segment_BL > 0).mean()
  examples = batch.examples
  counts = [f'padding {_positions_of(batch, PADDING)}']
  for name, number in hosts.numbers.items():
    counts.append(f'{name} {_positions_of(batch, number)}')
  head = (
    f'<h1>{html.escape(title)}</h1><p class="facts">{batch_rows} rows of {length} '
    f'positions, {filled:.1%} filled, {examples} examples; positions: '
    f'{", ".join(counts)}</p>'
  )
  sections = [('Budget', _budget_table(batch))]
  for row in range(min(rows, batch_rows)):
    sections.append((f'Row {row}', _row(batch, row, hosts)))
  return page(title, head, sections)


def _positions_of(batch: Batch, modality: int) -> int:
  """Returns how many positions of a batch have this modality."""
  return int((batch.modality_BL == modality).sum())


def _budget_table(batch: Batch) -> str:
  """Returns an HTML table of the used part of each stream's budget."""
  lines = ''
  for name, stream in batch.streams.items():
    used_pieces = stream.item_BM > 0
    used_items = stream.form_BN3.any(axis=2)
    lines += _budget_line(f'{name} (pieces)', used_pieces)
    lines += _budget_line(f'{name} (items)', used_items)
  head = '<tr><th></th><th>used</th><th>budget</th></tr>'
  return f'<table class="heat">{head}{lines}</table>'


def _budget_line(name: str, used: np.ndarray) -> str:
  return f'<tr><th>{name}</th><td>{int(used.sum())}</td><td>{used.size}</td></tr>'


def payload_of(batch: Batch, row: int, stretch: Stretch, hosts: Hosts) -> Any | None:
  """Returns the payload of a stretch's item, as the model receives it.

  Returns None if the stream holds stored codes instead of payloads.
  """
  spec = next(spec for spec in hosts.streams if spec.name == stretch.kind)
  if spec.entries:
    return None
  stream = batch.streams[stretch.kind]
  pool, _ = pool_of(batch, stretch.kind, row)
  value_M = stream.value_BM[pool][stream.item_BM[pool] == stretch.item]
  form = stream.form_BN3[pool, stretch.item - 1].tolist()
  return hosts[spec.medium].join_pieces(value_M, form)


def _content(
  batch: Batch, row: int, stretch: Stretch, hosts: Hosts, media: Media
) -> str:
  """Returns the content of a stretch as HTML."""
  positions = stretch.stop - stretch.start
  if stretch.kind == TEXT:
    words = html.escape(words_of(batch, row, stretch, hosts.tokenizer))
    return f'<span class="word small">{words}</span>'
  if stretch.kind == QUERIES:
    note = f'{positions} learned queries: the head writes from their states'
    return f'<span class="small">{note}</span>'
  payload = payload_of(batch, row, stretch, hosts)
  if payload is None:
    return f'<span class="small">stored codes of {positions} pieces</span>'
  medium, _ = medium_and_kind(stretch.kind)
  return media.embedded(hosts[medium].show(payload), stretch.kind)


def _row(batch: Batch, row: int, hosts: Hosts) -> str:
  """Returns the section of a row as HTML: its strip, its charts and its stretches."""
  media = Media(None)
  lines = ''
  for stretch in stretches_of(batch, row):
    example = batch.segment_BL[row, stretch.start]
    time = batch.position_BL3[row, stretch.start, 0]
    where = (
      f'{stretch.start}–{stretch.stop - 1}'
      f'<br><small>example {example}, time {time:g}</small>'
    )
    content = _content(batch, row, stretch, hosts, media)
    lines += f'<tr><td>{where}</td><td>{stretch.kind}</td><td>{content}</td></tr>'
  head = '<tr><th>positions</th><th>kind</th><th>content</th></tr>'
  table = f'<table class="heat">{head}{lines}</table>'
  charts = f'<div class="charts">{_mask(batch, row)}{_coordinates(batch, row)}</div>'
  return f'{_strip(batch, row, hosts)}{charts}<div class="wide">{table}</div>'


def _strip(batch: Batch, row: int, hosts: Hosts) -> str:
  """Returns the row as an SVG strip with a legend.

  Colors are modalities, wider gaps separate examples, marks below are losses.
  """
  modality_L = batch.modality_BL[row]
  segment_L = batch.segment_BL[row]
  cell = WIDTH / len(modality_L)
  shapes = ''
  for position, number in enumerate(modality_L.tolist()):
    starts_example = position and segment_L[position] != segment_L[position - 1]
    gap = EXAMPLE_GAP if starts_example else CELL_GAP
    shapes += (
      f'<rect x="{position * cell + gap:.1f}" y="0" width="{max(cell - gap, 0.5):.1f}" '
      f'height="{CELL_HEIGHT}" fill="{color_of(number)}"/>'
    )
  losses = loss_masks(batch, row, hosts)
  for line, (name, has_loss) in enumerate(losses.items()):
    color = color_of(hosts.numbers[name])
    top = MARKS_TOP + LINE_HEIGHT * line
    for position in np.flatnonzero(has_loss).tolist():
      shapes += (
        f'<rect x="{position * cell:.1f}" y="{top}" width="{cell:.1f}" '
        f'height="{MARK_HEIGHT}" fill="{color}"/>'
      )
  legend = ', '.join(_legend(hosts))
  height = MARKS_TOP + LINE_HEIGHT * len(losses)
  return (
    f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="row {row}">{shapes}'
    f'</svg><p class="note">{legend}; marks below: positions with a loss of the head '
    'of that color.</p>'
  )


def _legend(hosts: Hosts) -> Iterator[str]:
  """Yields the names of the run's media as HTML, each in its color."""
  for name, number in hosts.numbers.items():
    if name in hosts:
      yield f'<b style="color:{color_of(number)}">{name}</b>'


def _mask(batch: Batch, row: int) -> str:
  """Returns the attention mask of a row as a figure: same example, not the future."""
  segment_L = batch.segment_BL[row]
  same_LL = segment_L[:, None] == segment_L[None]
  filled_L = segment_L > 0
  past_LL = np.tri(len(segment_L), dtype=bool)
  mask_LL = same_LL & filled_L[:, None] & past_LL
  grey_LL1 = 1 - 0.8 * mask_LL[..., None].astype(np.float32)
  figure = Media(None).picture(grey_LL1, 'mask', css='grid')
  caption = 'attention mask: queries down, keys across'
  return f'<figure class="chart"><figcaption>{caption}</figcaption>{figure}</figure>'


def _coordinates(batch: Batch, row: int) -> str:
  """Returns a chart of the coordinates of a row's positions."""
  filled = int((batch.segment_BL[row] > 0).sum())
  lines = []
  for axis in range(3):
    values = batch.position_BL3[row, :filled, axis]
    lines.append(Line(np.arange(filled), values, np.zeros(filled)))
  return lines_chart('time (blue), height (red), width (green)', lines, unit='position')


def main() -> None:
  """Runs the command."""
  config = read_config(_FLAGS)
  if config is None or not _FLAGS.out:
    raise UserError('give --config=configs/digits.py and --out=page.html')
  run = Run(config, '')
  batch = _batch(run, _FLAGS.batch)
  out = epath.Path(checked(_FLAGS.out, '--out'))
  out.parent.mkdir(parents=True, exist_ok=True)
  title = f'omni_jax: batch {_FLAGS.batch}'
  out.write_text(render(batch, run.hosts, rows=_FLAGS.rows, title=title))
  print(f'inspect_data: wrote {out}')


def _batch(run: Run, number: int) -> Batch:
  """Returns a batch, by its number, as the omni stage of a single process gets it."""
  batches = omni_batches(run)
  try:
    for _ in range(number):
      next(batches)
    return next(batches)
  finally:
    batches.close()


if __name__ == '__main__':
  run_command(main)
