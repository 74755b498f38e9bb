"""Spoken coffee orders (Picovoice, Apache-2.0) and what they ask for: intent and slots, written as one line."""

from collections.abc import Mapping
import os
from typing import NamedTuple

from omni_jax.data.sources.pairs import pair
from omni_jax.data.sources.ready.files import json_rows, unusable
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.sequence.example import Example


class Order(NamedTuple):
  intent: str
  slots: dict[str, str]


class _Row(NamedTuple):
  file: str
  text: str


def order_text(intent: str, slots: Mapping[str, str]) -> str:
  """'orderDrink; coffeeDrink: latte; size: small': slots in the order of their names.

  Raises:
    ValueError: if `parse_order` would not give the same again.
  """
  text = '; '.join([intent, *(f'{name}: {slots[name]}' for name in sorted(slots))])
  if parse_order(text) != (intent, dict(slots)):
    raise ValueError(
      f'intent {intent!r} and slots {dict(slots)} cannot be told apart in one line'
    )
  return text


def parse_order(text: str) -> Order:
  """The inverse of `order_text`, for any text: what is no slot is left out, of two slots of a name the first counts."""
  intent, *pieces = (piece.strip() for piece in text.split(';'))
  slots: dict[str, str] = {}
  for piece in pieces:
    name, colon, value = (part.strip() for part in piece.partition(':'))
    if colon and name and value:
      slots.setdefault(name, value)
  return Order(intent, slots)


class Barista(ReadySet):
  """An order that is heard, and its line; `meta.form` asks the evaluation for scores of slots.

  The orders last 5 to 15 s: `config.model.audio.seconds` must allow that, longer ones are bad records.
  """

  NAME = 'barista'
  FOLDER = 'barista_speech'

  @property
  def files(self) -> tuple[str, ...]:
    return os.path.join(self.folder, 'labels.jsonl'), os.path.join(
      self.folder, 'audio.zip'
    )

  def _open(self) -> list[_Row]:
    rows = json_rows(
      self.files[0], {'file': str, 'intent': str, 'slots': dict, 'split': str}
    )
    try:
      return [
        _Row(row['file'], order_text(row['intent'], row['slots']))
        for row in rows
        if row['split'] == self.asked.split
      ]
    except ValueError as error:
      raise unusable(self.files[0], error) from error

  def _example(self, row: _Row) -> Example:
    heard, text = (
      {'type': 'audio', 'path': f'audio.zip/{row.file}'},
      {'type': 'text', 'text': row.text},
    )
    return {'id': row.file, 'meta': {'form': 'slots'}, **pair([heard], text, 'en')}
