"""Leaves out the examples in which a voice is heard or speaks."""

from collections.abc import Sequence

from omni_jax.data.sources.jsonl import JsonLines
from omni_jax.data.sources.ready.ready_set import ReadySet
from omni_jax.errors import UserError
from omni_jax.sequence.example import Example, Part, parts_of


class WithoutVoice(Sequence):
  """The examples of `lines` that do not have `voice`.

  Raises:
    UserError: if all or none of the examples have the voice.
  """

  def __init__(self, lines: JsonLines | ReadySet, voice: str):
    self.lines = lines
    self._kept: list[int] = []
    for index in range(len(lines)):
      if voice not in _voices(lines.encoded(index)):
        self._kept.append(index)
    if len(self._kept) in (0, len(lines)):
      count = 'none' if self._kept else 'all'
      raise UserError(
        f'config.data.leave_out={voice!r}: {count} of the {len(lines)} examples of '
        f'{lines.path} have this voice'
      )

  def __len__(self) -> int:
    return len(self._kept)

  def identity(self) -> str:
    """Returns the identity of all examples: their number shows what is left out."""
    return self.lines.identity()

  def __getitem__(self, index: int) -> Example:  # type: ignore[override]  # no slices
    return self.lines[self._kept[index]]

  def encoded(self, index: int) -> Example:
    """Returns an example with nothing decoded."""
    return self.lines.encoded(self._kept[index])

  def decode(self, part: Part) -> Part:
    """Returns a part with its medium decoded."""
    return self.lines.decode(part)


def _voices(example: Example) -> set[str]:
  heard = {part.get('voice', '') for part in parts_of(example)}
  messages = example.get('messages', [])
  speaking = {message.get('voice', '') for message in messages}
  return heard | speaking
