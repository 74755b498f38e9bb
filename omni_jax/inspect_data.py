"""python -m omni_jax.inspect_data --config=F --out=page.html [--rows=4 --batch=0]: what a batch holds, as one page.

Every row with its spans, modalities, positions, mask and where loss falls; media as the model gets them, sounds to see
and to hear. Look here first when training goes wrong.
"""

from collections.abc import Mapping
import html
from typing import Any, NamedTuple

from absl import flags
from etils import epath
from ml_collections import config_flags
import numpy as np

from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.page.charts import Line, lines_chart
from omni_jax.evaluate.page.page import page
from omni_jax.evaluate.page.shown import Media
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.train.stages import omni_batches, Run
from omni_jax.types import Batch, NONE, PADDING

_FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file('config', lock_config=True, flag_values=_FLAGS)
flags.DEFINE_string('out', '', 'page to write', flag_values=_FLAGS)
flags.DEFINE_integer('rows', 4, 'rows to show', lower_bound=1, flag_values=_FLAGS)
flags.DEFINE_integer(
  'batch', 0, 'which batch, from 0', lower_bound=0, flag_values=_FLAGS
)

COLORS = ('#e2e7ee', '#1f5ea8', '#1c7c4a', '#b07a12', '#8a3ea8', '#a83e3e')
QUERIES = 'queries'  # kind of a piece of a row that holds learned queries
WIDTH, LINE = 1040, 5


class Piece(NamedTuple):
  """Neighbouring positions of one example that carry the same.

  Attributes:
    kind: 'text', 'queries' or the name of a stream.
    item: of the stream, from 1; 0 for text.
  """

  start: int
  stop: int
  kind: str
  item: int


def color_of(number: int) -> str:
  """Returns the color of a modality by its number."""
  return COLORS[number % len(COLORS)]


def pieces_of(batch: Batch, row: int) -> list[Piece]:
  """Returns the row from left to right, without padding."""
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
      for at in np.flatnonzero(map_BL[row, :length] != NONE):
        kinds[at] = kind
        items[at] = stream.item_BM[pool, map_BL[row, at]]
  pieces: list[Piece] = []
  for at in range(length):
    last = pieces[-1] if pieces else None
    same = last and (last.kind, last.item) == (kinds[at], items[at])
    if same and segment_L[at] == segment_L[at - 1]:
      pieces[-1] = last._replace(stop=at + 1)
    else:
      pieces.append(Piece(at, at + 1, kinds[at], int(items[at])))
  return pieces


def pool_of(batch: Batch, stream: str, row: int) -> tuple[int, int]:
  """Returns the pool of a row, and the row's number among those that share it."""
  group = len(batch.token_BL) // max(1, len(batch.streams[stream].item_BM))
  return divmod(row, group)


def losses_of(batch: Batch, row: int, hosts: Hosts) -> dict[str, np.ndarray]:
  """Returns by head at which positions (bool, L) its loss falls."""
  losses = {TEXT: batch.weight_BL[row] > 0}
  for spec in hosts.streams:
    if spec.written:
      pool, number = pool_of(batch, spec.name, row)
      length = batch.token_BL.shape[1]
      at_M = batch.streams[spec.name].write_at_BM[pool]
      own_M = at_M[(at_M != NONE) & (at_M // length == number)]
      marked = np.zeros(length, bool)
      marked[own_M % length] = True
      losses[spec.medium] = marked
  return losses


def words_of(batch: Batch, row: int, piece: Piece, tokenizer: Tokenizer) -> str:
  """Text as it is, special tokens in angle brackets."""
  said, run = '', []
  for token in [
    *batch.token_BL[row, piece.start : piece.stop].tolist(),
    tokenizer.special('pad'),
  ]:
    name = tokenizer.name(token)
    if name is None:
      run.append(token)
      continue
    said += tokenizer.decode(tuple(run)) if run else ''
    run = []
    said += f'<{name}>' if name != 'pad' else ''
  return said


def render(batch: Batch, hosts: Hosts, *, rows: int, title: str) -> str:
  """Returns the page."""
  b, length = batch.token_BL.shape
  filled = (batch.segment_BL > 0).mean()
  examples = int(batch.segment_BL.max(axis=1).sum())
  names = {PADDING: 'padding', **{n: name for name, n in hosts.numbers.items()}}
  counts = ', '.join(
    f'{name} {int((batch.modality_BL == number).sum())}'
    for number, name in names.items()
  )
  head = (
    f'<h1>{html.escape(title)}</h1><p class="facts">{b} rows of {length} positions, {filled:.1%} filled, '
    f'{examples} examples; positions: {counts}</p>'
  )
  sections = [('Room', _room(batch))]
  for row in range(min(rows, b)):
    sections.append((f'Row {row}', _row(batch, row, hosts)))
  return page(title, head, sections)


def _room(batch: Batch) -> str:
  """Returns how much of what the budget has room for is used."""
  lines = ''
  for name, stream in batch.streams.items():
    pieces, items = stream.item_BM > 0, stream.form_BN3.any(axis=2)
    for what, used in (('pieces', pieces), ('items', items)):
      lines += f'<tr><th>{name} ({what})</th><td>{int(used.sum())}</td><td>{used.size}</td></tr>'
  head = '<tr><th></th><th>used</th><th>room</th></tr>'
  return f'<table class="heat">{head}{lines}</table>'


def payload_of(batch: Batch, row: int, piece: Piece, hosts: Hosts) -> Any | None:
  """Returns what the host makes of an item's pieces; None where they are stored codes."""
  spec = next(spec for spec in hosts.streams if spec.name == piece.kind)
  if spec.entries:
    return None
  stream = batch.streams[piece.kind]
  pool, _ = pool_of(batch, piece.kind, row)
  value_M = stream.value_BM[pool][stream.item_BM[pool] == piece.item]
  form = stream.form_BN3[pool, piece.item - 1].tolist()
  return hosts[spec.medium].joined(value_M, form)


def _content(batch: Batch, row: int, piece: Piece, hosts: Hosts, shown: Media) -> str:
  """Returns what a piece of a row carries, as HTML."""
  n = piece.stop - piece.start
  if piece.kind == TEXT:
    words = html.escape(words_of(batch, row, piece, hosts.tokenizer))
    return f'<span class="word small">{words}</span>'
  if piece.kind == QUERIES:
    return f'<span class="small">{n} learned queries: the head writes from here</span>'
  payload = payload_of(batch, row, piece, hosts)
  if payload is None:
    return f'<span class="small">stored codes of {n} pieces</span>'
  medium = piece.kind.partition('.')[0]
  return shown.embedded(hosts[medium].show(payload), piece.kind)


def _row(batch: Batch, row: int, hosts: Hosts) -> str:
  shown = Media(None)
  lines = ''
  for piece in pieces_of(batch, row):
    where = (
      f'{piece.start}–{piece.stop - 1}<br><small>example {batch.segment_BL[row, piece.start]}, time '
      f'{batch.position_BL3[row, piece.start, 0]:g}</small>'
    )
    content = _content(batch, row, piece, hosts, shown)
    lines += f'<tr><td>{where}</td><td>{piece.kind}</td><td>{content}</td></tr>'
  table = f'<table class="heat"><tr><th>positions</th><th>carries</th><th></th></tr>{lines}</table>'
  charts = f'<div class="charts">{_mask(batch, row)}{_places(batch, row)}</div>'
  return f'{_strip(batch, row, hosts)}{charts}<div class="wide">{table}</div>'


def _strip(batch: Batch, row: int, hosts: Hosts) -> str:
  """Returns the row as a strip: color is modality, a gap is the border of an example, marks below are losses."""
  modality_L, segment_L = batch.modality_BL[row], batch.segment_BL[row]
  step, marks = WIDTH / len(modality_L), ''
  for at, number in enumerate(modality_L.tolist()):
    border = at and segment_L[at] != segment_L[at - 1]
    gap = 1.5 if border else 0.3
    marks += (
      f'<rect x="{at * step + gap:.1f}" y="0" width="{max(step - gap, 0.5):.1f}" height="16" '
      f'fill="{color_of(number)}"/>'
    )
  losses = losses_of(batch, row, hosts)
  for line, (name, at_L) in enumerate(losses.items()):
    color = color_of(hosts.numbers[name])
    for at in np.flatnonzero(at_L):
      marks += f'<rect x="{at * step:.1f}" y="{19 + LINE * line}" width="{step:.1f}" height="4" fill="{color}"/>'
  legend = ', '.join(
    f'<b style="color:{color_of(number)}">{name}</b>' for name, number in _known(hosts)
  )
  height = 19 + LINE * len(losses)
  return (
    f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="row {row}">{marks}</svg>'
    f'<p class="note">{legend}; marks below: where the loss of that head falls.</p>'
  )


def _known(hosts: Hosts) -> list[tuple[str, int]]:
  numbers: Mapping[str, int] = hosts.numbers
  return [(name, number) for name, number in numbers.items() if name in hosts]


def _mask(batch: Batch, row: int) -> str:
  """Which position may look at which: same example, not the future."""
  segment_L = batch.segment_BL[row]
  mask_LL = (
    (segment_L[:, None] == segment_L[None])
    & (segment_L > 0)[:, None]
    & np.tri(len(segment_L), dtype=bool)
  )
  picture = Media(None).picture(
    1 - 0.8 * mask_LL[..., None].astype(np.float32), 'mask', css='grid'
  )
  return f'<figure class="chart"><figcaption>who (down) may look at whom</figcaption>{picture}</figure>'


def _places(batch: Batch, row: int) -> str:
  n = int((batch.segment_BL[row] > 0).sum())
  lines = [
    Line(np.arange(n), batch.position_BL3[row, :n, axis], np.zeros(n))
    for axis in range(3)
  ]
  return lines_chart('time (blue), height (red), width (green)', lines, unit='position')


def main() -> None:
  config = read_config(_FLAGS)
  if config is None or not _FLAGS.out:
    raise UserError('give --config=configs/digits.py and --out=page.html')
  run = Run(config, '')
  batch = _batch(run, _FLAGS.batch)
  out = epath.Path(_FLAGS.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  title = f'omni_jax: batch {_FLAGS.batch}'
  out.write_text(render(batch, run.hosts, rows=_FLAGS.rows, title=title))
  print(f'inspect_data: wrote {out}')


def _batch(run: Run, number: int) -> Batch:
  """Returns a batch as the omni stage of one process gets it."""
  batches = omni_batches(run)
  try:
    return [next(batches) for _ in range(number + 1)][-1]
  finally:
    batches.close()


if __name__ == '__main__':
  run_command(main)
