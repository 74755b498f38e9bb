"""Turns the ids and pieces of a reply into text and media, in the order of writing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from omni_jax.generate.grammar import block_writings
from omni_jax.modalities.contract import Part
from omni_jax.modalities.hosts import Hosts, TEXT


class WrittenItem(NamedTuple):
  """One item as the model wrote it, before it becomes a payload.

  Attributes:
    medium: name of its medium.
    pieces: (M, …) pieces as the host has them, or their codes.
    form: (time, height, width), in pieces.
  """

  medium: str
  pieces: np.ndarray
  form: tuple[int, int, int]


def items_of(
  tokens: Sequence[int],
  pieces: Mapping[str, np.ndarray],
  blocks: Sequence[WrittenItem],
  hosts: Hosts,
) -> list[str | WrittenItem]:
  """Returns the texts and the media of one reply, in order.

  Args:
    tokens: ids of the reply, 0 after its end.
    pieces: array (ids, …) of each medium that is written piece by piece; an entry is
      valid where the id announces a piece.
    blocks: items that were written as a block, in order.
  """
  tokenizer = hosts.tokenizer
  announced = {hosts.writing(name).piece: name for name in pieces}
  opening_sizes = _opening_sizes(hosts)
  items: list[str | WrittenItem] = []
  text: list[int] = []
  current: list[np.ndarray] = []  # pieces of the item that is being read
  current_medium = ''
  opening: list[int] = []  # ids since the last one that opens a block
  remaining = list(blocks)
  for index, token in enumerate([*tokens, 0]):
    if tokenizer.name(token) is None:
      text.append(token)
      continue
    if text:
      items.append(tokenizer.decode(tuple(text)))
      text = []
    if token in announced:
      current_medium = announced[token]
      current.append(pieces[current_medium][index])
      continue
    if current:
      form = hosts[current_medium].form_of((), len(current))
      items.append(WrittenItem(current_medium, np.stack(current), form))
      current = []
    if token in opening_sizes:
      opening = []
    opening.append(token)
    is_complete = len(opening) == opening_sizes.get(opening[0], 0)
    if remaining and is_complete:
      items.append(remaining.pop(0))
  return items


def _opening_sizes(hosts: Hosts) -> dict[int, int]:
  """Returns the number of ids in the whole opening, by the id that opens a block."""
  sizes = {}
  for writing in block_writings(hosts).values():
    for token in writing.opening[0]:
      sizes[token] = len(writing.opening)
  return sizes


def as_parts(
  replies: Sequence[Sequence[str | WrittenItem]],
  decode: Mapping[str, Callable[[list[np.ndarray]], list[np.ndarray]]],
  hosts: Hosts,
) -> list[list[Part]]:
  """Returns the parts of each reply.

  Args:
    decode: for each medium that is written as codes, a function that returns the pieces
      of items given as codes.
  """
  decoded: dict[str, Iterator[np.ndarray]] = {}
  for medium, function in decode.items():
    codes = _pieces_of(replies, medium)
    decoded[medium] = iter(function(codes) if codes else [])

  def part_of(item: str | WrittenItem) -> Part:
    if isinstance(item, str):
      return hosts[TEXT].part(item)
    host = hosts[item.medium]
    pieces = next(decoded[item.medium]) if item.medium in decoded else item.pieces
    return host.part(host.join_pieces(pieces, item.form))

  parts = []
  for reply in replies:
    parts.append([part_of(item) for item in reply])
  return parts


def _pieces_of(
  replies: Sequence[Sequence[str | WrittenItem]], medium: str
) -> list[np.ndarray]:
  """Returns the pieces of all items of a medium, in order."""
  pieces = []
  for reply in replies:
    for item in reply:
      if isinstance(item, WrittenItem) and item.medium == medium:
        pieces.append(item.pieces)
  return pieces
