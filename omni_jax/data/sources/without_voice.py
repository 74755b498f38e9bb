"""The examples of a file or a ready set in which one voice neither is heard nor speaks."""

from collections.abc import Sequence

from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.errors import UserError
from omni_jax.sequence.example import Example, Part, parts_of


class WithoutVoice(Sequence):
  """Those of `lines` without `voice`.

  Raises:
    UserError: if all or none of the examples have the voice.
  """

  def __init__(self, lines: JsonLines | ReadySet, voice: str):
    self.lines = lines
    self._kept = [
      index for index in range(len(lines)) if voice not in _voices(lines.encoded(index))
    ]
    if len(self._kept) in (0, len(lines)):
      having = 'none' if self._kept else 'all'
      raise UserError(
        f'config.data.leave_out={voice!r}: {having} of the {len(lines)} '
        f'examples of {lines.path} have this voice'
      )

  def __len__(self) -> int:
    return len(self._kept)

  def identity(self) -> str:
    return self.lines.identity()  # the number of examples tells what was left out

  def __getitem__(self, index: int) -> Example:
    return self.lines[self._kept[index]]

  def encoded(self, index: int) -> Example:
    return self.lines.encoded(self._kept[index])

  def decode(self, part: Part) -> Part:
    return self.lines.decode(part)


def _voices(example: Example) -> set[str]:
  heard = {part.get('voice', '') for part in parts_of(example)}
  speaking = {message.get('voice', '') for message in example.get('messages', [])}
  return heard | speaking
