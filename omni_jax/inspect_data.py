"""python -m omni_jax.inspect_data --config=F --out=page.html [--rows=4 --batch=0]: what a batch holds, as one page.

Every row with its spans, modalities, positions, mask and where loss falls; images as the model gets them, sounds to see
and to hear. Look here first when training goes wrong.
"""

import collections
import html
from typing import Any, NamedTuple

from absl import flags
from etils import epath
from ml_collections import config_flags
import numpy as np

from omni_jax.config import read_config
from omni_jax.errors import run_command, UserError
from omni_jax.evaluate.page.page import page
from omni_jax.evaluate.page.charts import Line, lines_chart
from omni_jax.evaluate.page.shown import Media, Shown
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.train.stages import omni_batches, Run
from omni_jax.types import Batch, MediaConfig, Modality, NONE

_FLAGS = flags.FlagValues()
config_flags.DEFINE_config_file('config', lock_config=True, flag_values=_FLAGS)
flags.DEFINE_string('out', '', 'page to write', flag_values=_FLAGS)
flags.DEFINE_integer('rows', 4, 'rows to show', lower_bound=1, flag_values=_FLAGS)
flags.DEFINE_integer(
  'batch', 0, 'which batch, from 0', lower_bound=0, flag_values=_FLAGS
)

COLOR = {
  Modality.PAD: '#e2e7ee',
  Modality.TEXT: '#1f5ea8',
  Modality.IMAGE: '#1c7c4a',
  Modality.AUDIO: '#b07a12',
}
MEDIA = {
  'seen': 'image',
  'drawn': 'image',
  'heard': 'audio',
  'spoken': 'audio',
}  # map of the batch -> what it shows
WIDTH, HEIGHT = 1040, 34


class Piece(NamedTuple):
  """Neighbouring positions of one example that carry the same."""

  start: int
  stop: int
  kind: str  # 'text', 'query' or a map of MEDIA
  item: int  # which image of the row, or the clip's first frame; 0 for the others


def pieces_of(batch: Batch, row: int, media: MediaConfig) -> list[Piece]:
  """The row from left to right, without padding."""
  found: list[Piece] = []
  for at in range(int((batch.segment_BL[row] > 0).sum())):
    kind, item = ('query', 0) if batch.query_BL[row, at] != NONE else ('text', 0)
    for name in MEDIA:
      if (index := getattr(batch, f'{name}_BL')[row, at]) != NONE:
        kind, item = name, _item(batch, row, name, int(index), media)
    last = found[-1] if found else None
    if (
      last
      and (last.kind, last.item) == (kind, item)
      and batch.segment_BL[row, at] == batch.segment_BL[row, at - 1]
    ):
      found[-1] = last._replace(stop=at + 1)
    else:
      found.append(Piece(at, at + 1, kind, item))
  return found


def _item(batch: Batch, row: int, name: str, index: int, media: MediaConfig) -> int:
  if MEDIA[name] == 'image':
    return index // media.image.patches
  return int(getattr(batch, f'{name}_clip_BR')[row, index]) - 1


def payload_of(batch: Batch, name: str) -> np.ndarray:
  """The media that a map of MEDIA points into: rows, images or frames, and then pixels or samples."""
  return getattr(batch, f'{name}_BNhwc' if MEDIA[name] == 'image' else f'{name}_BRS')


def losses_of(batch: Batch, row: int) -> dict[str, np.ndarray]:
  """By head, at which positions (bool, L) its loss falls."""
  length = batch.token_BL.shape[1]

  def marked(at: np.ndarray) -> np.ndarray:
    found = np.zeros(length, bool)
    found[at[at != NONE]] = True
    return found

  return {
    'text': batch.weight_BL[row] > 0,
    'image': marked(batch.draw_at_BNP[row].ravel()),
    'audio': marked(batch.speak_at_BR[row]),
  }


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


def render(
  batch: Batch, tokenizer: Tokenizer, media: MediaConfig, *, rows: int, title: str
) -> str:
  """The page."""
  b, length = batch.token_BL.shape
  filled, examples = (
    (batch.segment_BL > 0).mean(),
    int(batch.segment_BL.max(axis=1).sum()),
  )
  counts = {
    kind.name.lower(): int((batch.modality_BL == kind).sum()) for kind in Modality
  }
  head = (
    f'<h1>{html.escape(title)}</h1><p class="facts">{b} rows of {length} positions, {filled:.1%} filled, '
    f'{examples} examples; positions: {", ".join(f"{name} {n}" for name, n in counts.items())}</p>'
  )
  sections = [('Room', _room(batch, media))]
  sections += [
    (f'Row {row}', _row(batch, row, tokenizer, media)) for row in range(min(rows, b))
  ]
  return page(title, head, sections)


def _room(batch: Batch, media: MediaConfig) -> str:
  """How much of what the budget has room for is used."""
  lines, rows = '', range(len(batch.token_BL))
  items = {
    (row, piece.kind, piece.item)
    for row in rows
    for piece in pieces_of(batch, row, media)
  }
  used = collections.Counter(kind for _, kind, _ in items)
  for name, kind in MEDIA.items():
    room = payload_of(batch, name).shape[1] * len(rows)
    unit, n = 'images', used[name]
    if kind == 'audio':
      unit, n = 'frames', int((getattr(batch, f'{name}_clip_BR') > 0).sum())
    lines += f'<tr><th>{name} ({unit})</th><td>{n}</td><td>{room}</td></tr>'
  return (
    f'<table class="heat"><tr><th></th><th>used</th><th>room</th></tr>{lines}</table>'
  )


def _row(batch: Batch, row: int, tokenizer: Tokenizer, media: MediaConfig) -> str:
  shown, sounds = Media(None), media.audio
  lines = ''
  for piece in pieces_of(batch, row, media):
    where = (
      f'{piece.start}–{piece.stop - 1}<br><small>example {batch.segment_BL[row, piece.start]}, time '
      f'{batch.position_BL3[row, piece.start, 0]:g}</small>'
    )
    if piece.kind == 'text':
      what = f'<span class="word small">{html.escape(words_of(batch, row, piece, tokenizer))}</span>'
    elif piece.kind == 'query':
      what = f'<span class="small">{piece.stop - piece.start} learned queries: the image head draws here</span>'
    elif MEDIA[piece.kind] == 'image':
      what = shown.html(
        Shown('image', pixels=payload_of(batch, piece.kind)[row, piece.item]),
        piece.kind,
      )
    elif not payload_of(batch, piece.kind).shape[-1]:
      what = (
        f'<span class="small">stored codes of {piece.stop - piece.start} frames</span>'
      )
    else:
      wave = payload_of(batch, piece.kind)[
        row, piece.item : piece.item + piece.stop - piece.start
      ].ravel()
      what = shown.html(Shown('audio', wave=wave, rate=sounds.rate), piece.kind)
    lines += f'<tr><td>{where}</td><td>{piece.kind}</td><td>{what}</td></tr>'
  table = f'<table class="heat"><tr><th>positions</th><th>carries</th><th></th></tr>{lines}</table>'
  return (
    _strip(batch, row)
    + f'<div class="charts">{_mask(batch, row)}{_places(batch, row)}</div>'
    f'<div class="wide">{table}</div>'
  )


def _strip(batch: Batch, row: int) -> str:
  """The row as a strip: colour is modality, a gap is the border of an example, marks below are losses."""
  length = batch.token_BL.shape[1]
  step, marks = WIDTH / length, ''
  for at, (modality, segment) in enumerate(
    zip(batch.modality_BL[row], batch.segment_BL[row], strict=True)
  ):
    gap = 1.5 if at and segment != batch.segment_BL[row, at - 1] else 0.3
    marks += (
      f'<rect x="{at * step + gap:.1f}" y="0" width="{max(step - gap, 0.5):.1f}" height="16" '
      f'fill="{COLOR[Modality(modality)]}"/>'
    )
  heads = {'text': Modality.TEXT, 'image': Modality.IMAGE, 'audio': Modality.AUDIO}
  for line, (name, at_L) in enumerate(losses_of(batch, row).items()):
    marks += ''.join(
      f'<rect x="{at * step:.1f}" y="{19 + 5 * line}" width="{step:.1f}" height="4" '
      f'fill="{COLOR[heads[name]]}"/>'
      for at in np.flatnonzero(at_L)
    )
  return (
    f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="row {row}">{marks}</svg>'
    '<p class="note">Blue text, green image, brown audio; marks below: where the loss of that head falls.</p>'
  )


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
  batch, tokenizer, media = _batch(config, _FLAGS.batch)
  out = epath.Path(_FLAGS.out)
  out.parent.mkdir(parents=True, exist_ok=True)
  out.write_text(
    render(
      batch, tokenizer, media, rows=_FLAGS.rows, title=f'omni_jax: batch {_FLAGS.batch}'
    )
  )
  print(f'inspect_data: wrote {out}')


def _batch(config: Any, number: int) -> tuple[Batch, Tokenizer, MediaConfig]:
  """As the omni stage of one process gets it."""
  run = Run(config, '')
  batches = omni_batches(run)
  try:
    return (
      [next(batches) for _ in range(number + 1)][-1],
      Tokenizer(run.omni.tokenizer),
      run.omni.media,
    )
  finally:
    batches.close()


if __name__ == '__main__':
  run_command(main)
