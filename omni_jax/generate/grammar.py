"""What may follow what in a reply: a finite automaton over token ids, as tables for the jitted loop."""

import enum
from typing import NamedTuple

import numpy as np

from omni_jax.errors import UserError
from omni_jax.modalities.text.tokenizer import Tokenizer

WANTS = ('text', 'image', 'audio', 'any')


class Mode(enum.IntEnum):
  """Where a row stands in its reply."""

  START = 0  # nothing written yet
  TEXT = 1  # in text, or between two media
  HEIGHT = 2  # <boi> was said: the count of rows comes next
  WIDTH = 3
  DRAW = 4  # <h> <w> are known: the row waits for its image
  OPEN = 5  # <boa> was said: the first frame comes next
  AUDIO = 6
  END = 7  # the medium asked for is written: only <eot> is left
  DONE = 8


class Grammar(NamedTuple):
  """Tables over V ids; numpy, so that a want is an argument of the loop and not another program."""

  allowed_MV: np.ndarray  # bool: ids that may be said in a mode
  next_MV: np.ndarray  # int32: the mode after saying an id
  after_draw: np.ndarray  # int32 scalar: the mode after an image is drawn


def grammar(tokenizer: Tokenizer, want: str) -> Grammar:
  """The automaton of replies that hold text only, one image, one sound, or any sequence of them ('any').

  Raises:
    UserError: for a want that is none of these.
  """
  if want not in WANTS:
    raise UserError(f'--want={want!r} is unknown; it is one of {WANTS}')
  allowed = np.zeros((len(Mode), tokenizer.vocab_size), bool)
  following = np.full((len(Mode), tokenizer.vocab_size), int(Mode.DONE), np.int32)

  def edge(mode: Mode, ids, to: Mode) -> None:
    allowed[mode, ids] = True
    following[mode, ids] = to

  special = tokenizer.special
  letters = np.arange(tokenizer.first_byte, tokenizer.used)
  sizes = [special(f'size:{n}') for n in range(1, tokenizer.config.max_grid + 1)]
  after = Mode.TEXT if want == 'any' else Mode.END
  for mode in (Mode.START, Mode.TEXT):
    if want in ('text', 'any'):
      edge(mode, letters, Mode.TEXT)
    if want in ('image', 'any'):
      edge(mode, special('boi'), Mode.HEIGHT)
    if want in ('audio', 'any'):
      edge(mode, special('boa'), Mode.OPEN)
  edge(Mode.TEXT, special('eot'), Mode.DONE)
  edge(Mode.HEIGHT, sizes, Mode.WIDTH)
  edge(Mode.WIDTH, sizes, Mode.DRAW)
  edge(Mode.OPEN, special('frame'), Mode.AUDIO)
  edge(Mode.AUDIO, special('frame'), Mode.AUDIO)
  edge(Mode.AUDIO, special('eoa'), after)
  edge(Mode.END, special('eot'), Mode.DONE)
  return Grammar(allowed, following, np.int32(after))
