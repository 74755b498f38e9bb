"""The page of a batch shows what is in it."""

import re
import sys

import numpy as np
import pytest
from samples import examples, laid, packed, ROOT, tiny_model

from omni_jax import inspect_data
from omni_jax.errors import UserError
from omni_jax.inspect_data import losses_of, pieces_of, render, words_of
from omni_jax.modalities.text.tokenizer import Tokenizer
from omni_jax.types import NONE

MODEL = tiny_model()
TOKENIZER = Tokenizer(MODEL.tokenizer)


@pytest.fixture(scope='module')
def batch():
  return packed(laid(MODEL), MODEL.media)


def test_pieces_cover_the_row_and_name_what_is_there(batch):
  for row in range(len(batch.token_BL)):
    pieces = pieces_of(batch, row, MODEL.media)
    filled = int((batch.segment_BL[row] > 0).sum())
    assert [piece.start for piece in pieces] == [
      0,
      *(piece.stop for piece in pieces[:-1]),
    ] and pieces[-1].stop == filled
    for name in ('seen', 'drawn', 'heard', 'spoken'):
      at = np.concatenate(
        [np.arange(piece.start, piece.stop) for piece in pieces if piece.kind == name]
        or [[]]
      )
      np.testing.assert_array_equal(
        at, np.flatnonzero(getattr(batch, f'{name}_BL')[row] != NONE)
      )


def test_losses_fall_where_the_batch_says(batch):
  for row in range(len(batch.token_BL)):
    found = losses_of(batch, row)
    np.testing.assert_array_equal(found['text'], batch.weight_BL[row] > 0)
    assert found['image'].sum() == (batch.draw_at_BNP[row] != NONE).sum()
    assert found['audio'].sum() == (batch.speak_at_BR[row] != NONE).sum()


def test_words_are_those_of_the_examples(batch):
  said = [
    words_of(batch, row, piece, TOKENIZER)
    for row in range(len(batch.token_BL))
    for piece in pieces_of(batch, row, MODEL.media)
    if piece.kind == 'text'
  ]
  joined = ''.join(said)
  assert 'two<eot>' in joined and '<sot><lang:de><task:speak><voice:f1>' in joined
  assert joined.count('<boi>') == sum('image' in str(example) for example in examples())


def test_the_page_stands_alone(batch):
  text = render(batch, TOKENIZER, MODEL.media, rows=9, title='a < b')
  assert 'a &lt; b' in text and text.count('<section') == 1 + len(batch.token_BL)
  assert not re.search(r'(src|href)="(?!data:|#)', text)
  media = sum(
    piece.kind in inspect_data.MEDIA
    for row in range(2)
    for piece in pieces_of(batch, row, MODEL.media)
  )
  players = sum(
    piece.kind in ('heard', 'spoken')
    for row in range(2)
    for piece in pieces_of(batch, row, MODEL.media)
  )
  assert (
    text.count('<audio') == players and text.count('<img') == media + 2
  )  # and a mask for each row


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
