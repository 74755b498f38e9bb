"""Collects the media that an autoencoder is trained on, each once."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.mixture import Mixture
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.data.sources.without_voice import WithoutVoice
from omni_jax.errors import BadRecord
from omni_jax.sequence.example import Example, MEDIA, Part, parts_of

# Sources whose media are files or members of archives.
SourceWithPaths = JsonLines | ReadySet | WithoutVoice


class Payloads(NamedTuple):
  """Decoded media of one kind.

  Attributes:
    arrays: the payloads.
    refused: errors of the media that cannot be used, which the loader of the omni stage
      counts again.
  """

  arrays: list[np.ndarray]
  refused: list[BadRecord]


def payload_of(part: Part) -> Any:
  """Returns the array of a decoded part."""
  return part[MEDIA[part['type']].key]


def named_payloads(examples: SourceWithPaths, medium: str, limit: int) -> Payloads:
  """Returns every payload that the model writes, or reads if it writes none.

  Args:
    examples: source whose media are told apart by their paths.
    medium: name of the medium.
    limit: is ignored: the paths are found without decoding the media.
  """
  del limit
  written: dict[str, Part] = {}
  read: dict[str, Part] = {}
  for index in range(len(examples)):
    example = examples.encoded(index)
    for message in example.get('messages', [example]):
      parts = read if message.get('role') == 'user' else written
      for part in message['content']:
        if part['type'] == medium:
          parts[part['path']] = part
  payloads = Payloads([], [])
  for part in (written or read).values():
    try:
      decoded = examples.decode(part)
    except BadRecord as error:
      payloads.refused.append(error)
      continue
    payloads.arrays.append(payload_of(decoded))
  return payloads


def sampled_payloads(examples: Sequence[Example], medium: str, limit: int) -> Payloads:
  """Returns every payload of about `limit` examples, evenly spread over the data.

  In a mixture, each source gives as many examples. Media of records have no names, so
  payloads of equal content count as the same.
  """
  by_content: dict[int, np.ndarray] = {}
  refused: list[BadRecord] = []
  for source in Mixture.of(examples).sources:
    stride = -(-len(source) // limit)
    for index in range(0, len(source), stride):
      try:
        parts = _parts_of_medium(source, index, medium)
      except BadRecord as error:
        refused.append(error)
        continue
      for part in parts:
        payload = payload_of(part)
        by_content[hash(payload.tobytes())] = payload
  return Payloads(list(by_content.values()), refused)


def _parts_of_medium(source: Sequence[Example], index: int, medium: str) -> list[Part]:
  """Returns the decoded parts of a medium; an example without any is not decoded."""
  if hasattr(source, 'encoded') and not _of_medium(source.encoded(index), medium):
    return []
  return _of_medium(source[index], medium)


def _of_medium(example: Example, medium: str) -> list[Part]:
  return [part for part in parts_of(example) if part['type'] == medium]
