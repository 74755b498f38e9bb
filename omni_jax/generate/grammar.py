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

START, IN_TEXT, END, DONE = range(4)  # modes; those of media follow
ANY = 'any'
FORM = 3  # sizes of an item: (time, height, width)


class Grammar(NamedTuple):
  """Tables over M modes and V ids.

  The decode loop takes them as arguments, so that it is compiled once for all wants.

  Attributes:
    allowed_MV: bool, ids that may be written in a mode.
    next_MV: int32, mode after an id is written.
    block_M: int32, number of the medium whose block a row in this mode waits for, or 0.
    inside_M: int32, number of the medium of which a row in this mode writes one piece
      at a time, or 0.
    after: int32, mode after an item is written.
  """

  allowed_MV: np.ndarray
  next_MV: np.ndarray
  block_M: np.ndarray
  inside_M: np.ndarray
  after: np.ndarray


def block_writings(hosts: Hosts) -> dict[str, Writing]:
  """Returns how media that are written as a block are written, by medium."""
  writings = {}
  for name, host in hosts.items():
    writing = host.writing()
    if writing is not None and writing.piece is None:
      writings[name] = writing
  return writings


def piece_writings(hosts: Hosts) -> dict[str, Writing]:
  """Returns how media that are written one piece at a time are written, by medium."""
  writings = {}
  for name, host in hosts.items():
    writing = host.writing()
    if writing is not None and writing.piece is not None:
      writings[name] = writing
  return writings


def reply_kinds(hosts: Hosts) -> tuple[str, ...]:
  """Returns what a reply may be requested to hold.

  That is text, one of the media that can be written, or any sequence of them.
  """
  return (TEXT, *_written_media(hosts), ANY)


def _written_media(hosts: Hosts) -> list[str]:
  return [name for name, host in hosts.items() if host.writing() is not None]


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
    """Allows ids in a mode and says which mode follows them."""
    ids = np.asarray(ids)
    self.allowed[mode][ids] = True
    self.next[mode][ids] = next_mode

  def tables(self, after: int) -> Grammar:
    """Returns the finished tables; see `Grammar` for `after`."""
    return Grammar(
      allowed_MV=np.stack(self.allowed),
      next_MV=np.stack(self.next),
      block_M=np.array(self.block, np.int32),
      inside_M=np.array(self.inside, np.int32),
      after=np.asarray(after, np.int32),
    )


def grammar(hosts: Hosts, want: str) -> Grammar:
  """Returns the automaton of replies that hold what is wanted.

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
  for _ in (START, IN_TEXT, END, DONE):
    automaton.add_mode()
  text_ids = np.arange(tokenizer.first_byte, tokenizer.used)
  after = IN_TEXT if want == ANY else END
  for name in _written_media(hosts):
    first_mode = _add_medium(automaton, hosts, name, after)
    if want in (name, ANY):
      opening = hosts.writing(name).opening[0]
      automaton.add_edge(START, opening, first_mode)
      automaton.add_edge(IN_TEXT, opening, first_mode)
  if want in (TEXT, ANY):
    automaton.add_edge(START, text_ids, IN_TEXT)
    automaton.add_edge(IN_TEXT, text_ids, IN_TEXT)
  end = tokenizer.special('eot')
  automaton.add_edge(IN_TEXT, end, DONE)
  automaton.add_edge(END, end, DONE)
  return automaton.tables(after)


def _add_medium(automaton: _Automaton, hosts: Hosts, name: str, after: int) -> int:
  """Adds the modes of a medium and returns the mode behind its first id."""
  writing = hosts.writing(name)
  number = hosts.numbers[name]
  sizes = writing.opening[1:]
  modes = [automaton.add_mode() for _ in sizes]
  if writing.piece is None:
    modes.append(automaton.add_mode(block=number))
  else:
    opened = automaton.add_mode()
    inside = automaton.add_mode(inside=number)
    automaton.add_edge(opened, writing.piece, inside)
    automaton.add_edge(inside, writing.piece, inside)
    automaton.add_edge(inside, writing.closing, after)
    modes.append(opened)
  for k, ids in enumerate(sizes):
    automaton.add_edge(modes[k], ids, modes[k + 1])
  return modes[0]
