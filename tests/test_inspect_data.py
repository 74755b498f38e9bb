"""The page of a batch shows what is in it."""

import re
import sys

import numpy as np
import pytest
from samples import examples, laid, packed, ROOT, tiny_model

from omni_jax import inspect_data
from omni_jax.errors import UserError
from omni_jax.inspect_data import (
  losses_of,
  payload_of,
  pieces_of,
  QUERIES,
  render,
  words_of,
)
from omni_jax.sequence.example import parts_of
from omni_jax.types import NONE

MODEL = tiny_model()
HOSTS = MODEL.hosts()


@pytest.fixture(scope='module')
def batch():
  return packed(laid(MODEL), HOSTS)


def test_pieces_cover_the_row_and_name_what_is_there(batch):
  for row in range(len(batch.token_BL)):
    pieces = pieces_of(batch, row)
    filled = int((batch.segment_BL[row] > 0).sum())
    assert [piece.start for piece in pieces] == [
      0,
      *(piece.stop for piece in pieces[:-1]),
    ] and pieces[-1].stop == filled
    for name, stream in batch.streams.items():
      at = np.concatenate(
        [np.arange(piece.start, piece.stop) for piece in pieces if piece.kind == name]
        or [[]]
      )
      np.testing.assert_array_equal(at, np.flatnonzero(stream.at_BL[row] != NONE))
    queries = [piece for piece in pieces if piece.kind == QUERIES]
    drawn = batch.streams['image.drawn']
    assert len(queries) == (drawn.form_BN3[row, :, 0] > 0).sum()
    at = [np.arange(piece.start, piece.stop) for piece in queries]
    np.testing.assert_array_equal(
      np.concatenate(at or [[]]), np.flatnonzero(drawn.query_at_BL[row] != NONE)
    )


def test_losses_fall_where_the_batch_says(batch):
  for row in range(len(batch.token_BL)):
    found = losses_of(batch, row, HOSTS)
    np.testing.assert_array_equal(found['text'], batch.weight_BL[row] > 0)
    for medium, name in (('image', 'image.drawn'), ('audio', 'audio.spoken')):
      at_M = batch.streams[name].write_at_BM[row]
      assert found[medium].sum() == (at_M != NONE).sum()


def test_words_are_those_of_the_examples(batch):
  said = [
    words_of(batch, row, piece, HOSTS.tokenizer)
    for row in range(len(batch.token_BL))
    for piece in pieces_of(batch, row)
    if piece.kind == 'text'
  ]
  joined = ''.join(said)
  assert 'two<eot>' in joined and '<sot><lang:de><task:speak><voice:f1>' in joined
  assert joined.count('<boi>') == sum('image' in str(example) for example in examples())


def test_the_page_stands_alone(batch):
  text = render(batch, HOSTS, rows=9, title='a < b')
  assert 'a &lt; b' in text and text.count('<section') == 1 + len(batch.token_BL)
  assert not re.search(r'(src|href)="(?!data:|#)', text)
  kinds = [piece.kind for row in range(2) for piece in pieces_of(batch, row)]
  pictures = kinds.count('image.seen') + kinds.count('image.drawn')
  players = kinds.count('audio.heard') + kinds.count('audio.spoken')
  assert text.count('<audio') == players
  # A sound is seen, too; and a mask for each row.
  assert text.count('<img') == pictures + players + 2


def test_the_media_are_those_of_the_examples(batch):
  """As the model gets them: in bytes and in 16 bits."""
  shown = {'image': [], 'audio': []}
  for row in range(len(batch.token_BL)):
    for piece in pieces_of(batch, row):
      medium, _, kind = piece.kind.partition('.')
      if kind:
        shown[medium].append(payload_of(batch, row, piece, HOSTS))
  parts = [part for example in examples() for part in parts_of(example)]
  for medium, key, step in (('image', 'pixels', 1 / 255), ('audio', 'wave', 2**-15)):
    given = [part[key] for part in parts if part['type'] == medium]
    assert len(given) == len(shown[medium]) > 3
    for payload in given:
      same = [each for each in shown[medium] if _alike(each, payload, step)]
      assert len(same) == 1


def _alike(payload, given, step):
  whole = payload[: len(given)]  # the last frame is padded with silence
  return whole.shape == given.shape and np.abs(whole - given).max() < step


def run(monkeypatch, *arguments):
  monkeypatch.setattr(sys, 'argv', ['inspect_data', *arguments])
  inspect_data._FLAGS.unparse_flags()
  inspect_data.main()


def test_the_command(monkeypatch, tmp_path, capsys):
  run(
    monkeypatch,
    f'--config={ROOT / "configs" / "tiny.py"}',
    f'--out={tmp_path / "pages" / "x.html"}',
    '--rows=1',
    '--batch=1',
    '--config.mesh.data=1',
  )
  assert (tmp_path / 'pages' / 'x.html').read_text().startswith('<!DOCTYPE html>')
  assert 'wrote' in capsys.readouterr().out
  with pytest.raises(UserError, match='give --config'):
    run(monkeypatch, f'--config={ROOT / "configs" / "tiny.py"}', '--out=')
  with pytest.raises(UserError, match='no_such'):
    run(monkeypatch, f'--config={tmp_path / "no_such.py"}', '--out=x')
