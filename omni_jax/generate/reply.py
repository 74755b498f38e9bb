"""What was written -> parts: text and media in the order in which the model wrote them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.modalities.contract import Part
from omni_jax.modalities.hosts import Hosts, TEXT


class Written(NamedTuple):
  """One item as the model wrote it, not yet a payload.

  Attributes:
    pieces: (M, …) as the host has them, or as codes.
    form: (time, height, width).
  """

  medium: str
  pieces: np.ndarray
  form: tuple[int, int, int]


def items_of(
  tokens: Sequence[int],
  pieces: Mapping[str, np.ndarray],
  blocks: Sequence[Written],
  hosts: Hosts,
) -> list[str | Written]:
  """Returns one reply in order: texts, and media as they were written.

  Args:
    tokens: ids as written, 0 after the end.
    pieces: by medium that is written one piece at a time, (ids, …): those count whose id announces a piece.
    blocks: items that were written as a block, in order.
  """
  tokenizer = hosts.tokenizer
  announced = {hosts[name].writing().piece: name for name in pieces}
  sizes = _last_sizes(hosts)
  items: list[str | Written] = []
  text: list[int] = []
  run: list[np.ndarray] = []  # pieces of the item that is being written
  name_of_run = ''
  left = list(blocks)
  said: list[int] = []  # ids since the last opening, for media whose sizes are said
  for at, token in enumerate([*tokens, 0]):
    if tokenizer.name(token) is None:
      text.append(token)
      continue
    if text:
      items.append(tokenizer.decode(tuple(text)))
      text = []
    if token in announced:
      name_of_run = announced[token]
      run.append(pieces[name_of_run][at])
      continue
    if run:
      form = hosts[name_of_run].form_of((), len(run))
      items.append(Written(name_of_run, np.stack(run), form))
      run = []
    said = [token] if token in sizes else [*said, token]
    if left and said and len(said) == sizes.get(said[0], 0):
      items.append(left.pop(0))
  return items


def _last_sizes(hosts: Hosts) -> dict[int, int]:
  """Returns the id that opens a medium written as a block -> ids of its opening."""
  found = {}
  for name in hosts:
    writing = hosts[name].writing() if name != TEXT else None
    if writing is not None and writing.piece is None:
      for token in writing.opening[0]:
        found[token] = len(writing.opening)
  return found


def as_parts(
  replies: Sequence[Sequence[str | Written]],
  decode: Mapping[str, Callable[[list[np.ndarray]], list[np.ndarray]]],
  hosts: Hosts,
) -> list[list[Part]]:
  """Returns replies as parts.

  Args:
    decode: by medium that is written as codes, codes of many items -> their pieces.
  """
  decoded: dict[str, list[np.ndarray]] = {}
  for medium, function in decode.items():
    mine = [item.pieces for reply in replies for item in reply if _is_of(item, medium)]
    decoded[medium] = function(mine)[::-1] if mine else []

  def part(item: str | Written) -> Part:
    if isinstance(item, str):
      return hosts[TEXT].part(item)
    host = hosts[item.medium]
    pieces = decoded[item.medium].pop() if item.medium in decoded else item.pieces
    return host.part(host.joined(pieces, item.form))

  return [[part(item) for item in reply] for reply in replies]


def _is_of(item: Any, medium: str) -> bool:
  return isinstance(item, Written) and item.medium == medium
