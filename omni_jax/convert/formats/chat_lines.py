"""JSON lines with media beside them, as an input of a conversion."""

from collections.abc import Iterator, Sequence
import os

from etils import epath

from omni_jax.convert.formats.reader import Example, Found, refused
from omni_jax.data.sources.jsonl import index_lines, parse_line, read_beside
from omni_jax.errors import BadRecord, UserError
from omni_jax.retry import patiently
from omni_jax.sequence.example import map_media


class JsonLinesReader:
  """One item a line. A line that is no example is found and refused, not a reason to stop."""

  chunk = 500

  def __init__(self, path: str):
    self.files = (path,)
    self._path = epath.Path(path)
    self._lines_n3 = index_lines(self._path)

  def __len__(self) -> int:
    return len(self._lines_n3)

  def read(self, items: range) -> Iterator[Found]:
    lines_n3 = self._lines_n3[items.start : items.stop].tolist()
    for (_, _, number), line in zip(lines_n3, self._texts(lines_n3), strict=True):
      name = f'{os.path.basename(self._path)}:{number}'
      try:
        example = parse_line(line)
      except BadRecord as error:
        yield Found(name, refused(error))
        continue
      yield Found(
        example['id'] or name, lambda example=example: self._with_media(example)
      )

  def _texts(self, lines_n3: Sequence[Sequence[int]]) -> list[bytes]:
    """The lines of one piece, all of them at once: they hold paths, not media."""

    def read() -> list[bytes]:
      with self._path.open('rb') as file:
        return [
          file.read(length) for start, length, _ in lines_n3 if file.seek(start) >= 0
        ]

    try:
      return patiently(read, self._path)
    except OSError as error:
      raise UserError(
        f'{self._path}: cannot be read ({error}): the same command goes on where it stopped'
      ) from error

  def _with_media(self, example: Example) -> Example:
    def medium(part: Example) -> Example:
      try:
        return {
          'type': part['type'],
          'data': read_beside(os.fspath(self._path.parent), part['path']),
        }
      except BadRecord as error:
        raise error.at(part['path']) from error

    return map_media(example, medium)
