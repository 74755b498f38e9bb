"""Provides hosts, budgets and a slow reference to the tests of packing."""

import dataclasses

import numpy as np
from samples import hosts_of, tiny_model

from omni_jax.modalities.image.sizes import ImageConfig
from omni_jax.types import Batch, NONE, RowBudget, Stream

MODEL = tiny_model()
HOSTS = MODEL.hosts()
AUDIO = HOSTS['audio'].config
PATCH = HOSTS['image'].config.patch
PATCHES = HOSTS['image'].config.patches
FRAME = AUDIO.frame


def hosts_of_fit(fit):
  """Returns hosts whose images are fitted this way."""
  tokenizer = HOSTS.tokenizer.config
  return hosts_of(image=ImageConfig(fit=fit), audio=AUDIO, tokenizer=tokenizer)


BY_FIT = {'stretch': hosts_of_fit('stretch'), 'keep': hosts_of_fit('keep')}
SMALL = RowBudget(
  rows=3,
  length=80,
  streams={
    'image.seen': (32, 3),
    'image.drawn': (16, 1),
    'audio.heard': (6, 3),
    'audio.spoken': (4, 2),
  },
)
# Holds images of up to 16 patches, which lie entirely within blocks of 32.
MANY = dataclasses.replace(
  SMALL, length=160, streams=SMALL.streams | {'image.seen': (64, 6)}
)
BUDGETS = {'stretch': SMALL, 'keep': MANY}
LARGE = RowBudget(
  rows=8,
  length=400,
  streams={
    'image.seen': (128, 8),
    'image.drawn': (128, 8),
    'audio.heard': (40, 12),
    'audio.spoken': (40, 12),
  },
)


def items_of(example):
  """Returns the pieces (M, Y) and the form of each item, by stream, from the media."""
  items = {spec.name: [] for spec in HOSTS.streams}
  for message in example['messages']:
    written = message['role'] == 'assistant'
    for medium in message['content']:
      if medium['type'] == 'image':
        squares = patches_of(np.rint(medium['pixels'] * 255))
        height, width, _ = medium['pixels'].shape
        form = (1, height // PATCH, width // PATCH)
        items['image.drawn' if written else 'image.seen'].append((squares, form))
      if medium['type'] == 'audio':
        frames = frames_of(np.rint(medium['wave'] * 32768))
        form = (len(frames), 1, 1)
        items['audio.spoken' if written else 'audio.heard'].append((frames, form))
  return items


def patches_of(pixels):
  """Returns the square patches of an image row by row, each in reading order."""
  squares = []
  for r in range(0, pixels.shape[0], PATCH):
    for c in range(0, pixels.shape[1], PATCH):
      squares.append(pixels[r : r + PATCH, c : c + PATCH].reshape(-1))
  return np.stack(squares)


def frames_of(wave):
  """Returns the frames of a sound, the last one padded with silence."""
  frames = [wave[at : at + FRAME] for at in range(0, len(wave), FRAME)]
  frames[-1] = np.pad(frames[-1], (0, FRAME - len(frames[-1])))
  return np.stack(frames)


def start_of(taken, pieces, block, alone):
  """Returns the first allowed place of an item: a slow `StreamSpec.start`."""
  start = taken
  while block:
    is_whole = start // block == (start + pieces - 1) // block
    if is_whole and (start % block == 0 or not alone):
      break
    start += 1
  return start


class Row:
  """Keeps track of the room that a row has left: a slow reference."""

  def __init__(self, budget, fit):
    self._budget = budget
    self._blocks = {'image': PATCHES if fit == 'stretch' else 2 * PATCHES}
    self._alone = fit == 'stretch'
    self.length = 0
    self.ends = dict.fromkeys(budget.streams, 0)
    self.counts = dict.fromkeys(budget.streams, 0)

  def starts(self, item, items):
    """Returns where the items of an example begin by stream, or None without room."""
    if self.length + item.length > self._budget.length:
      return None
    starts = {}
    for name, own in items.items():
      max_pieces, max_items = self._budget.streams[name]
      block = self._blocks.get(name.partition('.')[0], 0)
      end = self.ends[name]
      starts[name] = []
      for pieces, _ in own:
        start = start_of(end, len(pieces), block, self._alone)
        starts[name].append(start)
        end = start + len(pieces)
      if end > max_pieces or self.counts[name] + len(own) > max_items:
        return None
    return starts

  def take(self, item, items, starts):
    """Adds an example whose items begin there."""
    self.length += item.length
    for name, own in items.items():
      self.counts[name] += len(own)
      if own:
        self.ends[name] = starts[name][-1] + len(own[-1][0])


def assert_placed(batch, row, start, item, items, starts=None, before=None):
  """Checks that an example lies in its row from `start` on.

  Its ids and its maps are compared, and the pieces that the maps point to.

  Args:
    item: the example, laid out.
    items: its items, as `items_of` returns them.
    starts: where the items begin in their streams.
    before: number of items of earlier examples in the row, by stream.
  """
  positions = np.arange(start, start + item.length)
  layout = item.layout
  target = batch.target_BL[row, positions]
  np.testing.assert_array_equal(batch.token_BL[row, positions], layout.token_n)
  np.testing.assert_array_equal(batch.modality_BL[row, positions], layout.modality_n)
  np.testing.assert_array_equal(batch.position_BL3[row, positions], layout.offset_n3)
  np.testing.assert_array_equal(target, [*layout.label_n[1:], 0])
  np.testing.assert_array_equal(batch.weight_BL[row, positions], target > 0)
  for name, own in items.items():
    stream = batch.streams[name]
    at = stream.at_BL[row, positions]
    medium = name.partition('.')[0]
    carrying = positions[at != NONE]
    np.testing.assert_array_equal(
      batch.modality_BL[row, carrying], HOSTS.numbers[medium]
    )
    at = at[at != NONE].tolist()
    assert len(at) == sum(len(pieces) for pieces, _ in own)
    for k, (pieces, form) in enumerate(own):
      indices = at[: len(pieces)]
      at = at[len(pieces) :]
      number = (before[name] if before else 0) + k
      if starts:
        assert indices[0] == starts[name][k]
      assert indices == list(range(indices[0], indices[0] + len(pieces)))
      np.testing.assert_array_equal(stream.value_BM[row, indices], pieces)
      assert (stream.item_BM[row, indices] == number + 1).all()
      places = [np.unravel_index(i, form) for i in range(len(pieces))]
      np.testing.assert_array_equal(stream.place_BM3[row, indices], places)
      np.testing.assert_array_equal(stream.form_BN3[row, number], form)
      assert stream.key_BN[row, number] == (item.key + k) % 2**32


def assert_nothing_else(batch, row, ends, counts):
  """Checks that the rest of a row is empty, and that no piece is carried twice."""
  for name, stream in batch.streams.items():
    used = stream.item_BM[row] > 0
    carried = stream.at_BL[row][stream.at_BL[row] != NONE]
    np.testing.assert_array_equal(np.sort(carried), np.flatnonzero(used))
    assert not used[ends[name] :].any()
    assert not stream.value_BM[row, ~used].any()
    assert not stream.place_BM3[row, ~used].any()
    assert not stream.form_BN3[row, counts[name] :].any()
    assert not stream.key_BN[row, counts[name] :].any()
    assert stream.form_BN3[row, : counts[name]].all()


def assert_heads_find_their_places(batch, row):
  """Checks the maps of written pieces.

  Each query is listed once, at the position that shows it, and each spoken frame once,
  at the position before it.
  """
  drawn = batch.streams['image.drawn']
  write_at_M = drawn.write_at_BM[row]
  queries = np.flatnonzero(drawn.query_at_BL[row] != NONE)
  assert sorted(write_at_M[write_at_M != NONE]) == queries.tolist()
  np.testing.assert_array_equal(write_at_M != NONE, drawn.item_BM[row] > 0)
  for piece in np.flatnonzero(write_at_M != NONE):
    query = write_at_M[piece]
    assert drawn.query_at_BL[row, query] == piece
    (clean,) = np.flatnonzero(drawn.at_BL[row] == piece)
    assert clean > query
    assert batch.segment_BL[row, clean] == batch.segment_BL[row, query]
    np.testing.assert_array_equal(
      batch.position_BL3[row, clean], batch.position_BL3[row, query]
    )
  spoken = batch.streams['audio.spoken']
  used = spoken.write_at_BM[row] != NONE
  np.testing.assert_array_equal(
    spoken.at_BL[row, spoken.write_at_BM[row, used] + 1], np.flatnonzero(used)
  )
  assert used.sum() == (spoken.at_BL[row] != NONE).sum()
  assert (np.diff(used.astype(int)) <= 0).all()
  for name in ('image.seen', 'audio.heard', 'audio.spoken'):
    assert batch.streams[name].query_at_BL is None
  for name in ('image.seen', 'audio.heard'):
    assert batch.streams[name].write_at_BM is None


def assert_equal(actual, expected):
  """Checks that two batches agree in every array."""
  assert isinstance(actual, Batch)
  assert actual.streams.keys() == expected.streams.keys()
  for name, a, b in zip(actual._fields[:-1], actual[:-1], expected[:-1], strict=True):
    np.testing.assert_array_equal(a, b, err_msg=name)
  for name, stream in actual.streams.items():
    other = expected.streams[name]
    for field, a, b in zip(Stream._fields, stream, other, strict=True):
      assert (a is None) == (b is None)
      if a is not None:
        assert a.dtype == b.dtype, (name, field)
        np.testing.assert_array_equal(a, b, err_msg=f'{name} {field}')
