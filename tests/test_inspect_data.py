"""The page of a batch shows the contents of the batch."""

import re
import sys

import numpy as np
import pytest
from samples import examples, laid_out_examples, packed_batch, ROOT, tiny_model

from omni_jax import inspect_data
from omni_jax.errors import UserError
from omni_jax.inspect_data import (
  loss_masks,
  payload_of,
  QUERIES,
  render,
  stretches_of,
  words_of,
)
from omni_jax.sequence.example import parts_of
from omni_jax.types import NONE

MODEL = tiny_model()
HOSTS = MODEL.hosts()


@pytest.fixture(scope='module')
def batch():
  return packed_batch(laid_out_examples(MODEL), HOSTS)


def all_stretches(batch):
  """Yields (row, stretch) for each stretch of each row."""
  for row in range(len(batch.token_BL)):
    for stretch in stretches_of(batch, row):
      yield row, stretch


def positions_of(stretches, kind):
  """Returns the positions of all stretches of one kind."""
  positions = []
  for stretch in stretches:
    if stretch.kind == kind:
      positions += range(stretch.start, stretch.stop)
  return positions


def test_stretches_cover_the_row_and_name_its_contents(batch):
  drawn = batch.streams['image.drawn']
  for row in range(len(batch.token_BL)):
    stretches = stretches_of(batch, row)
    filled = int((batch.segment_BL[row] > 0).sum())
    starts = [stretch.start for stretch in stretches]
    stops = [stretch.stop for stretch in stretches]
    assert starts == [0, *stops[:-1]]
    assert stops[-1] == filled
    for name, stream in batch.streams.items():
      expected = np.flatnonzero(stream.at_BL[row] != NONE)
      np.testing.assert_array_equal(positions_of(stretches, name), expected)
    kinds = [stretch.kind for stretch in stretches]
    assert kinds.count(QUERIES) == (drawn.form_BN3[row, :, 0] > 0).sum()
    expected = np.flatnonzero(drawn.query_at_BL[row] != NONE)
    np.testing.assert_array_equal(positions_of(stretches, QUERIES), expected)


def test_losses_are_where_the_batch_has_them(batch):
  for row in range(len(batch.token_BL)):
    losses = loss_masks(batch, row, HOSTS)
    np.testing.assert_array_equal(losses['text'], batch.weight_BL[row] > 0)
    for medium, name in (('image', 'image.drawn'), ('audio', 'audio.spoken')):
      at_M = batch.streams[name].write_at_BM[row]
      assert losses[medium].sum() == (at_M != NONE).sum()


def test_words_are_those_of_the_examples(batch):
  words = ''
  for row, stretch in all_stretches(batch):
    if stretch.kind == 'text':
      words += words_of(batch, row, stretch, HOSTS.tokenizer)
  assert 'two<eot>' in words
  assert '<sot><lang:de><task:speak><voice:f1>' in words
  assert words.count('<boi>') == sum('image' in str(example) for example in examples())


def test_the_page_is_self_contained(batch):
  text = render(batch, HOSTS, rows=9, title='a < b')
  assert 'a &lt; b' in text
  assert text.count('<section') == 1 + len(batch.token_BL)
  assert not re.search(r'(src|href)="(?!data:|#)', text)
  rows = len(batch.token_BL)
  assert rows == 2
  kinds = [stretch.kind for _, stretch in all_stretches(batch)]
  pictures = kinds.count('image.seen') + kinds.count('image.drawn')
  players = kinds.count('audio.heard') + kinds.count('audio.spoken')
  assert text.count('<audio') == players
  # Each sound has a picture, too, and each row has a mask.
  assert text.count('<img') == pictures + players + rows


def test_the_media_are_those_of_the_examples(batch):
  """The page has them as the model receives them: 8-bit pixels and 16-bit samples."""
  payloads = {'image': [], 'audio': []}
  for row, stretch in all_stretches(batch):
    medium, _, kind = stretch.kind.partition('.')
    if kind:
      payloads[medium].append(payload_of(batch, row, stretch, HOSTS))
  parts = [part for example in examples() for part in parts_of(example)]
  for medium, key, step in (('image', 'pixels', 1 / 255), ('audio', 'wave', 2**-15)):
    originals = [part[key] for part in parts if part['type'] == medium]
    assert len(originals) == len(payloads[medium]) > 3
    for original in originals:
      matches = [x for x in payloads[medium] if _is_close(x, original, step)]
      assert len(matches) == 1


def _is_close(payload, original, step):
  """Returns whether a payload equals the original up to one quantisation step."""
  trimmed = payload[: len(original)]  # the last frame is padded with silence
  if trimmed.shape != original.shape:
    return False
  return np.abs(trimmed - original).max() < step


def run(monkeypatch, *arguments):
  """Runs the command in this process."""
  monkeypatch.setattr(sys, 'argv', ['inspect_data', *arguments])
  inspect_data._FLAGS.unparse_flags()
  inspect_data.main()


def test_the_command_writes_a_page_and_refuses_missing_files(
  monkeypatch, tmp_path, capsys
):
  config = f'--config={ROOT}/configs/tiny.py'
  page = tmp_path / 'pages' / 'x.html'
  arguments = (f'--out={page}', '--rows=1', '--batch=1', '--config.mesh.data=1')
  run(monkeypatch, config, *arguments)
  assert page.read_text().startswith('<!DOCTYPE html>')
  assert 'wrote' in capsys.readouterr().out
  with pytest.raises(UserError, match='give --config'):
    run(monkeypatch, config, '--out=')
  with pytest.raises(UserError, match='no_such'):
    run(monkeypatch, f'--config={tmp_path / "no_such.py"}', '--out=x')
