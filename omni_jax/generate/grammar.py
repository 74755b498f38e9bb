"""What may follow what in a reply: a finite automaton over token ids, as tables for the jitted loop.

Text and END are the core's; each medium that can be written adds modes of its own, from its host's `writing`.
"""

from typing import NamedTuple

import numpy as np

from omni_jax.errors import UserError
from omni_jax.modalities.hosts import Hosts, TEXT

START, IN_TEXT, END, DONE = range(4)  # modes; those of media follow
ANY = 'any'
FORM = 3  # sizes of an item: (time, height, width)


class Grammar(NamedTuple):
  """Tables over M modes and V ids; numpy, so that a want is an argument of the loop and not another program.

  Attributes:
    allowed_MV: ids that may be said in a mode.
    next_MV: int32, the mode after saying an id.
    block_M: int32, number of the medium whose item a row in this mode waits for; 0 in all others.
    inside_M: int32, number of the medium whose pieces a row in this mode writes one at a time; 0 in all others.
    after: int32, the mode after an item is written.
  """

  allowed_MV: np.ndarray
  next_MV: np.ndarray
  block_M: np.ndarray
  inside_M: np.ndarray
  after: np.ndarray


def wants_of(hosts: Hosts) -> tuple[str, ...]:
  """Returns what a reply can be asked to hold: text, a medium that can be written, or any sequence of them."""
  written = [name for name in hosts if name != TEXT and hosts[name].writing()]
  return (TEXT, *written, ANY)


class _Automaton:
  """The tables in the making."""

  def __init__(self, vocab: int):
    self.vocab = vocab
    self.allowed: list[np.ndarray] = []
    self.next: list[np.ndarray] = []
    self.block: list[int] = []
    self.inside: list[int] = []

  def mode(self, block: int = 0, inside: int = 0) -> int:
    """Returns a new mode."""
    self.allowed.append(np.zeros(self.vocab, bool))
    self.next.append(np.full(self.vocab, DONE, np.int32))
    self.block.append(block)
    self.inside.append(inside)
    return len(self.block) - 1

  def edge(self, mode: int, ids, to: int) -> None:
    ids = np.asarray(ids)
    self.allowed[mode][ids] = True
    self.next[mode][ids] = to

  def tables(self, after: int) -> Grammar:
    return Grammar(
      np.stack(self.allowed),
      np.stack(self.next),
      np.array(self.block, np.int32),
      np.array(self.inside, np.int32),
      np.int32(after),
    )


def grammar(hosts: Hosts, want: str) -> Grammar:
  """Returns the automaton of replies that hold text only, one item of a medium, or any sequence of them ('any').

  Raises:
    UserError: for a want that is none of these.
  """
  wants = wants_of(hosts)
  if want not in wants:
    raise UserError(f'--want={want!r} is unknown; it is one of {wants}')
  tokenizer = hosts.tokenizer
  automaton = _Automaton(tokenizer.vocab_size)
  for _ in (START, IN_TEXT, END, DONE):
    automaton.mode()
  letters = np.arange(tokenizer.first_byte, tokenizer.used)
  after = IN_TEXT if want == ANY else END
  for name in wants[1:-1]:
    first = _medium(automaton, hosts, name, after)
    if want in (name, ANY):
      opening = hosts[name].writing().opening[0]
      automaton.edge(START, opening, first)
      automaton.edge(IN_TEXT, opening, first)
  if want in (TEXT, ANY):
    automaton.edge(START, letters, IN_TEXT)
    automaton.edge(IN_TEXT, letters, IN_TEXT)
  end = tokenizer.special('eot')
  automaton.edge(IN_TEXT, end, DONE)
  automaton.edge(END, end, DONE)
  return automaton.tables(after)


def _medium(automaton: _Automaton, hosts: Hosts, name: str, after: int) -> int:
  """Adds the modes of a medium; returns the one behind its first id."""
  writing, number = hosts[name].writing(), hosts.numbers[name]
  sizes = [automaton.mode() for _ in writing.opening[1:]]
  if writing.piece is None:
    last = automaton.mode(block=number)
  else:
    last = automaton.mode()
    inside = automaton.mode(inside=number)
    automaton.edge(last, writing.piece, inside)
    automaton.edge(inside, writing.piece, inside)
    automaton.edge(inside, writing.closing, after)
  modes = [*sizes, last]
  for k, ids in enumerate(writing.opening[1:]):
    automaton.edge(modes[k], ids, modes[k + 1])
  return modes[0]
