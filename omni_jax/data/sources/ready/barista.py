"""The ready set of spoken coffee orders, whose intent and slots are written as a line.

It is by Picovoice, Apache-2.0.
"""

from collections.abc import Mapping
import os
from typing import NamedTuple

from omni_jax.data.sources.pairs import pair_example
from omni_jax.data.sources.ready.files import json_rows, unusable
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.sequence.example import Example, text_part

SLOTS = 'slots'  # form of the texts, which the evaluation scores in a way of its own


class Order(NamedTuple):
  """The meaning of a spoken order."""

  intent: str
  slots: dict[str, str]


class _Row(NamedTuple):
  file: str
  text: str


def order_text(intent: str, slots: Mapping[str, str]) -> str:
  """Returns the line of an order, its slots sorted by name.

  An example is 'orderDrink; coffeeDrink: latte; size: small'.

  Raises:
    ValueError: if `parse_order` would not return the same order.
  """
  pieces = [intent]
  pieces += [f'{name}: {slots[name]}' for name in sorted(slots)]
  text = '; '.join(pieces)
  if parse_order(text) != (intent, dict(slots)):
    raise ValueError(
      f'intent {intent!r} and slots {dict(slots)} cannot be told apart in one line'
    )
  return text


def parse_order(text: str) -> Order:
  """Returns the order of a line: the inverse of `order_text`, for any text.

  Pieces that are not slots are ignored; of several slots with the same name, the first
  counts.
  """
  intent, *pieces = text.split(';')
  slots: dict[str, str] = {}
  for piece in pieces:
    name, _, value = piece.partition(':')
    name = name.strip()
    value = value.strip()
    if name and value:
      slots.setdefault(name, value)
  return Order(intent.strip(), slots)


class Barista(ReadySet):
  """Spoken orders and their lines; `meta.form` makes the evaluation score the slots.

  The orders last 5 to 15 s. `config.model.audio.seconds` must allow that, or longer
  ones are bad records.
  """

  NAME = 'barista'
  FOLDER = 'barista_speech'

  @property
  def files(self) -> tuple[str, ...]:
    labels = os.path.join(self.folder, 'labels.jsonl')
    return labels, os.path.join(self.folder, 'audio.zip')

  def _open(self) -> list[_Row]:
    labels = self.files[0]
    fields = {'file': str, 'intent': str, 'slots': dict, 'split': str}
    rows: list[_Row] = []
    for row in json_rows(labels, fields):
      if row['split'] != self.selection.split:
        continue
      try:
        text = order_text(row['intent'], row['slots'])
      except ValueError as error:
        raise unusable(labels, error) from error
      rows.append(_Row(row['file'], text))
    return rows

  def _example(self, row: _Row) -> Example:
    clip = {'type': 'audio', 'path': f'audio.zip/{row.file}'}
    text = text_part(row.text)
    meta = {'form': SLOTS}
    return {'id': row.file, 'meta': meta, **pair_example([clip], text, 'en')}
