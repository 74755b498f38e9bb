"""The grammar of replies: a finite automaton over token ids, in tables.

Text and the end of a reply are always part of it. Each medium that can be written adds
its own modes, as the `writing` of its host describes them. The decode loop takes the
tables as arguments.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from omni_jax.errors import UserError
from omni_jax.modalities.contract import Writing
from omni_jax.modalities.hosts import Hosts, TEXT
from omni_jax.modalities.text.tokenizer import ANY

START, IN_TEXT, EXPECT_EOT, DONE = range(4)  # modes; those of media follow
FORM = 3  # sizes of an item: (time, height, width)


class Grammar(NamedTuple):
  """Tables over C modes and V ids.

  Attributes:
    allowed_CV: bool, ids that may be written in a mode.
    next_CV: int32, mode after an id is written.
    block_C: int32, number of the medium whose block a row in this mode waits for, or 0.
    inside_C: int32, number of the medium of which a row in this mode writes one piece
      at a time, or 0.
    after: int32, mode after an item is written.
  """

  allowed_CV: np.ndarray
  next_CV: np.ndarray
  block_C: np.ndarray
  inside_C: np.ndarray
  after: np.ndarray


def _writings(hosts: Hosts) -> dict[str, Writing]:
  """Returns how each medium that can be written is written."""
  writings = {}
  for name, host in hosts.items():
    writing = host.writing()
    if writing is not None:
      writings[name] = writing
  return writings


def block_writings(hosts: Hosts) -> dict[str, Writing]:
  """Returns how each medium that is written as a block is written."""
  writings = _writings(hosts).items()
  return {name: writing for name, writing in writings if writing.piece is None}


def piece_writings(hosts: Hosts) -> dict[str, Writing]:
  """Returns how each medium that is written piece by piece is written."""
  writings = _writings(hosts).items()
  return {name: writing for name, writing in writings if writing.piece is not None}


def reply_kinds(hosts: Hosts) -> tuple[str, ...]:
  """Returns the values that `want` may take.

  They are text, each medium that can be written, and any sequence of these.
  """
  return (TEXT, *_writings(hosts), ANY)


class _Automaton:
  """Collects the modes and edges of a grammar."""

  def __init__(self, vocab: int):
    self.vocab = vocab
    self.allowed: list[np.ndarray] = []
    self.next: list[np.ndarray] = []
    self.block: list[int] = []
    self.inside: list[int] = []

  def add_mode(self, block: int = 0, inside: int = 0) -> int:
    """Adds a mode and returns its number; see `Grammar` for the arguments."""
    self.allowed.append(np.zeros(self.vocab, bool))
    self.next.append(np.full(self.vocab, DONE, np.int32))
    self.block.append(block)
    self.inside.append(inside)
    return len(self.block) - 1

  def add_edge(
    self, mode: int, ids: int | Sequence[int] | np.ndarray, next_mode: int
  ) -> None:
    """Allows ids in a mode, and sets the mode that follows them."""
    ids = np.asarray(ids)
    self.allowed[mode][ids] = True
    self.next[mode][ids] = next_mode

  def tables(self, after: int) -> Grammar:
    """Returns the finished tables; see `Grammar` for `after`."""
    return Grammar(
      allowed_CV=np.stack(self.allowed),
      next_CV=np.stack(self.next),
      block_C=np.array(self.block, np.int32),
      inside_C=np.array(self.inside, np.int32),
      after=np.asarray(after, np.int32),
    )


def build_grammar(hosts: Hosts, want: str) -> Grammar:
  """Returns the automaton of replies of the requested kind.

  Args:
    want: 'text' for text only, a medium for one item of it, 'any' for any sequence.

  Raises:
    UserError: if `want` is none of these.
  """
  wants = reply_kinds(hosts)
  if want not in wants:
    raise UserError(f'--want={want!r} is unknown; it is one of {wants}')
  tokenizer = hosts.tokenizer
  automaton = _Automaton(tokenizer.vocab_size)
  for _ in (START, IN_TEXT, EXPECT_EOT, DONE):  # they get these numbers
    automaton.add_mode()
  text_ids = np.arange(tokenizer.first_byte, tokenizer.used)
  after = IN_TEXT if want == ANY else EXPECT_EOT
  for name in _writings(hosts):
    first_mode = _add_medium(automaton, hosts, name, after)
    if want in (name, ANY):
      opening = hosts.writing(name).opening[0]
      automaton.add_edge(START, opening, first_mode)
      automaton.add_edge(IN_TEXT, opening, first_mode)
  if want in (TEXT, ANY):
    automaton.add_edge(START, text_ids, IN_TEXT)
    automaton.add_edge(IN_TEXT, text_ids, IN_TEXT)
  eot = tokenizer.special('eot')
  automaton.add_edge(IN_TEXT, eot, DONE)
  automaton.add_edge(EXPECT_EOT, eot, DONE)
  return automaton.tables(after)


def _add_medium(automaton: _Automaton, hosts: Hosts, name: str, after: int) -> int:
  """Adds the modes of a medium, and returns the mode after its first id."""
  writing = hosts.writing(name)
  number = hosts.numbers[name]
  sizes = writing.opening[1:]
  modes = [automaton.add_mode() for _ in sizes]
  if writing.piece is None:
    modes.append(automaton.add_mode(block=number))
  else:
    before_pieces = automaton.add_mode()
    inside = automaton.add_mode(inside=number)
    automaton.add_edge(before_pieces, writing.piece, inside)
    automaton.add_edge(inside, writing.piece, inside)
    automaton.add_edge(inside, writing.closing, after)
    modes.append(before_pieces)
  for k, ids in enumerate(sizes):
    automaton.add_edge(modes[k], ids, modes[k + 1])
  return modes[0]
