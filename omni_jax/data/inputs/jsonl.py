"""JSON lines with media beside them, as an input of a conversion."""

from collections.abc import Iterator
import os

from etils import epath

from omni_jax.data.example import map_media
from omni_jax.data.inputs.reader import Example, Found, refused
from omni_jax.data.jsonl import index_lines, parse_line, read_beside
from omni_jax.data.media import BadRecord


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
    with self._path.open('rb') as file:
      for start, length, number in self._lines_n3[items.start:items.stop].tolist():
        file.seek(start)
        name = f'{os.path.basename(self._path)}:{number}'
        try:
          example = parse_line(file.read(length))
        except BadRecord as error:
          yield Found(name, refused(error))
          continue
        yield Found(example['id'] or name, lambda example=example: self._with_media(example))

  def _with_media(self, example: Example) -> Example:
    def medium(part: Example) -> Example:
      try:
        return {'type': part['type'], 'data': read_beside(os.fspath(self._path.parent), part['path'])}
      except BadRecord as error:
        raise BadRecord(f'{part["path"]}: {error.reason}') from error
    return map_media(example, medium)
